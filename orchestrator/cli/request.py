"""Options that launch and plan share, and the way from them to inventory, job and facts."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence, Tuple, TypeVar

import click

from orchestrator.cli.completion import HOST, INVENTORY_FILE
from orchestrator.errors import SpecError, UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Host, Inventory
    from orchestrator.job import Job
    from orchestrator.planning.facts import HostFacts
    from orchestrator.planning.plan import Plan
    from orchestrator.transport.base import Transport

F = TypeVar("F", bound=Callable[..., Any])
MODES = ("train", "finetune", "eval", "predict", "export")


def inventory_options(function: F) -> F:
    """``--inventory`` and ``--limit``."""
    for decorate in reversed(
        (
            click.option(
                "-i",
                "--inventory",
                "inventory_file",
                required=True,
                metavar="FILE",
                type=INVENTORY_FILE,
                help="Inventory of servers (YAML), the name of a shipped one, slurm:[FILE] or "
                "modelarts:[FILE].",
            ),
            click.option(
                "--limit",
                metavar="PATTERN",
                type=HOST,
                help="Only these hosts or groups; !x leaves out.",
            ),
        )
    ):
        function = decorate(function)
    return function


def job_options(function: F) -> F:
    """Everything that describes the job: mode, configuration, overrides, worker."""
    for decorate in reversed(
        (
            click.argument("mode", type=click.Choice(MODES)),
            click.argument("worker_args", nargs=-1, type=click.UNPROCESSED),
            click.option(
                "--config", metavar="FILE", help="Worker YAML, or a name such as tiny_cpu."
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="Set a key of the worker YAML, e.g. parallel_config.data_parallel=8.",
            ),
            click.option("--load-checkpoint", "--load_checkpoint", metavar="FILE"),
            click.option("--predict-data", "--predict_data", metavar="TEXT"),
            click.option("--devices", metavar="RANGE", help="Devices of each host, e.g. [0,8)."),
            click.option(
                "--env",
                "environment",
                multiple=True,
                metavar="KEY=VALUE",
                help="Variable of every rank.",
            ),
            click.option(
                "--watch",
                "watch",
                multiple=True,
                metavar="KEY=VALUE",
                help="How the run is watched, e.g. step_s=900, on_divergence=stop, silence_s=120.",
            ),
            click.option(
                "--recover",
                "recovery",
                multiple=True,
                metavar="KEY=VALUE",
                help="What is done after a failure, e.g. max_restarts=3, min_hosts=10.",
            ),
            click.option("--recipe", help="ascend_ranktable, dynamic_cluster or standalone."),
            click.option(
                "--worker-command", metavar="COMMAND", help="Run this instead of python -m glm2."
            ),
            click.option("--workload", metavar="NAME", help="glm2 (default), or mindformers."),
            click.option(
                "--mindformers-dir",
                metavar="DIR",
                help="Folder of run_mindformer.py on the hosts (workload mindformers).",
            ),
            click.option(
                "--stage-direct",
                is_flag=True,
                help="Send staged files over SSH from here to each host: encrypted, and slower.",
            ),
            click.option(
                "--run-id", metavar="NAME", help="Name of the run; default: mode and time."
            ),
        )
    ):
        function = decorate(function)
    return function


def read_inventory(inventory_file: str, limit: Optional[str]) -> Inventory:
    """Load, check and narrow the inventory: a path, the name of a shipped one, or ``slurm:`` or
    ``modelarts:``, with a file of defaults behind the colon if there is one."""
    from orchestrator import inventory as inventories
    from orchestrator.resources import resource_dir

    platform, colon, rest = inventory_file.partition(":")
    if colon and platform in ("slurm", "modelarts"):
        loaded = _of_platform(platform, Path(rest) if rest else None)
        return inventories.limit(loaded, limit) if limit else loaded
    path = Path(inventory_file)
    if not path.exists() and path.parent == Path("."):
        shipped = resource_dir("inventories") / f"{path.name.removesuffix('.yaml')}.yaml"
        path = shipped if shipped.exists() else path
    loaded = inventories.load_inventory(path, default_python=sys.executable, home=Path.home())
    return inventories.limit(loaded, limit) if limit else loaded


def with_devices(inventory: Inventory, devices: Optional[str]) -> Inventory:
    """The inventory with the devices of ``--devices`` on every host; spares that lack one of
    them are left out. Raises UsageError, naming the hosts, when a host lacks one."""
    from orchestrator.inventory import DevicesError, parse_devices

    if devices is None:
        return inventory
    try:
        chosen = parse_devices(devices)
    except DevicesError as error:
        raise UsageError(f"--devices: {error}", hint=error.hint) from None
    lacking = [host for host in inventory.hosts if not set(chosen) <= set(host.devices)]
    if lacking:
        first = lacking[0]
        absent = ", ".join(str(device) for device in chosen if device not in first.devices)
        more = f" (nor {len(lacking) - 1} more hosts all of these)" if len(lacking) > 1 else ""
        raise UsageError(
            f"--devices {devices}: {inventory.source} gives {first.name} no device {absent}{more}",
            hint=f"choose among {', '.join(map(str, first.devices))}, or change `devices` there",
        )
    hosts = tuple(_narrowed(host, chosen) for host in inventory.hosts)
    spares = (host for host in inventory.spares if set(chosen) <= set(host.devices))
    return replace(inventory, hosts=hosts, spares=tuple(_narrowed(host, chosen) for host in spares))


def without_quarantined(inventory: Inventory) -> Tuple[Inventory, Tuple[str, ...]]:
    """The inventory with spares in the places of quarantined hosts, and notes that say so.

    Raises HostNotReady, naming every quarantined host, when there are too few spares.
    """
    from orchestrator.inventory import working_hosts
    from orchestrator.runs.layout import home
    from orchestrator.runs.quarantine import Quarantine

    return working_hosts(inventory, Quarantine(home(), inventory.cluster).entries())


def build_job(
    inventory: Inventory, mode: str, request: Mapping[str, Any], *, run_id: Optional[str]
) -> Job:
    """The job that the command line and the inventory's ``job:`` section describe; the files that
    it stages have been read. ``request`` may lack options that the command does not have."""
    from orchestrator import job as jobs
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.manifests import manifests_of
    from orchestrator.engine.payload import worker_folder
    from orchestrator.runs.layout import home

    options = jobs.JobOptions(
        config=request["config"],
        recipe=request["recipe"],
        settings=request["settings"],
        env=request["environment"],
        worker_command=request["worker_command"],
        workload=request.get("workload"),
        mindformers_dir=request.get("mindformers_dir"),
        worker_args=request["worker_args"],
        load_checkpoint=request["load_checkpoint"],
        predict_data=request["predict_data"],
        watch=request["watch"],
        stage_direct=bool(request.get("stage_direct")),
        recovery=request["recovery"],
    )
    defaults = jobs.JobDefaults(inventory.job, inventory.job_locations, inventory.folder)
    job = jobs.build_job(
        run_id or _new_run_id(mode),
        mode,
        options,
        defaults,
        config_dir=worker_folder() / "configs",
        cwd=Path.cwd(),
    )
    with steps_shown() as progress:
        return manifests_of(job, home() / "staging", progress)[0]


def plan_offline(
    inventory: Inventory, job: Job, facts_file: Optional[str], notes: Sequence[str] = ()
) -> Plan:
    """The plan from what is declared or kept in a file; no host is asked."""
    from orchestrator.planning.planner import plan

    return plan(inventory, job, {} if facts_file is None else _read_facts(facts_file), notes)


def facts_checked(
    inventory: Inventory, job: Job, transports: Mapping[str, Transport]
) -> Mapping[str, HostFacts]:
    """The hosts' facts, after a preflight whose warnings are said. Raises for what is critical."""
    from orchestrator.cli.output import say
    from orchestrator.cli.preflight import say_findings
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.preflight import preflight
    from orchestrator.preflight.findings import bad_hosts

    with steps_shown() as progress:
        result = preflight(inventory.hosts, transports, job, progress=progress)
    say_findings(result.findings, inventory.hosts)
    if bad_hosts(result.findings):
        again = f"glm2-orch preflight -i {inventory.source} --quarantine"
        say(f"to keep bad hosts out, and spares in their places: {again}")
    result.refuse()
    return result.facts


def facts_unchecked(
    inventory: Inventory, job: Job, transports: Mapping[str, Transport]
) -> Mapping[str, HostFacts]:
    """The hosts' facts without a preflight. Raises when a host cannot even begin the job."""
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.gather import check_ready, gather
    from orchestrator.planning.environment import SCHEDULER_PORT
    from orchestrator.planning.facts import parse_facts

    port = job.scheduler_port or SCHEDULER_PORT
    with steps_shown() as progress:
        raw = gather(inventory.hosts, transports, scheduler_port=port, progress=progress)
    facts = {name: parse_facts(fields, host=name) for name, fields in raw.items()}
    check_ready(inventory.hosts, facts, needs_mindspore=not job.worker_command)
    return facts


def _of_platform(platform: str, file: Optional[Path]) -> Inventory:
    """The hosts of the Slurm allocation, or the ModelArts job, that this command runs in."""
    import os
    import socket

    from orchestrator.inventory import slurm_inventory
    from orchestrator.planning.modelarts import modelarts_inventory

    def resolve(name: str) -> Optional[str]:
        try:
            return socket.gethostbyname(name)
        except OSError:
            return None

    home, cwd = Path.home(), Path.cwd()
    if platform == "slurm":
        return slurm_inventory(
            os.environ, file, resolve=resolve, default_python=sys.executable, home=home, cwd=cwd
        )
    return modelarts_inventory(os.environ, file, default_python=sys.executable, home=home, cwd=cwd)


def _narrowed(host: Host, devices: Tuple[int, ...]) -> Host:
    ips = dict(zip(host.devices, host.device_ips))
    device_ips = tuple(ips[device] for device in devices) if ips else ()
    return replace(host, devices=devices, device_ips=device_ips)


def _new_run_id(mode: str) -> str:
    from orchestrator.runs.layout import new_run_id

    return new_run_id(mode, datetime.now(), secrets.token_hex(2))


def _read_facts(facts_file: str) -> Mapping[str, HostFacts]:
    import json

    from orchestrator.planning.facts import parse_facts

    try:
        raw = json.loads(Path(facts_file).read_text("utf-8"))["facts"]
        items = list(raw.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"cannot read facts from {facts_file}: {error}",
            hint="make the file with: glm2-orch facts --inventory FILE --out FILE",
        ) from None
    return {name: parse_facts(fields, host=name) for name, fields in items}
