"""``plan(inventory, job, facts) -> Plan``. Pure: no clock, network, randomness or environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import List, Mapping, Optional, Sequence, Tuple

from orchestrator.errors import Location, PlanError
from orchestrator.inventory import Host, Inventory, unfit_for_910
from orchestrator.job import Job
from orchestrator.planning.cluster_table import cluster_table
from orchestrator.planning.environment import (
    CLUSTER_VARIABLES,
    Place,
    Scheduler,
    choose_recipe,
    find_scheduler,
    rank_environment,
    scheduler_environment,
    threads_per_rank,
)
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.plan import HostPlan, Plan, PlannedFile, PlannedProcess
from orchestrator.planning.ranktable import rank_order
from orchestrator.planning.render import render
from orchestrator.planning.staged import staged_notes, staged_text, staged_values
from orchestrator.planning.strategy import check_strategy
from orchestrator.worker_config import set_value
from orchestrator.yaml_positions import dump

CONFIG_FILE = "job.yaml"
RANK_TABLE_FILE = "rank_table.json"
SPEC_FILE = "spec.json"
SCHEDULER = "scheduler"


def plan(
    inventory: Inventory, job: Job, facts: Mapping[str, HostFacts], notes: Sequence[str] = ()
) -> Plan:
    """Everything that a launch of ``job`` on the hosts of ``inventory`` will do.

    Ranks are numbered by ``rank_order`` of the servers, then by device, whatever the
    recipe. ``facts`` (by host name) may be empty where the inventory declares ``device_ips`` or
    the recipe needs none. ``notes`` say how the hosts were chosen (``working_hosts``); warnings
    about the job's layout join them. Raises PlanError or RankTableError when the job cannot run so.
    """
    hosts = rank_order(inventory.hosts, lambda host: host.server_id)
    platform = inventory.platform
    devices = [len(host.devices) for host in hosts] if platform is None else platform.devices
    world_size = sum(devices)
    target = _one_target(hosts)
    _check_mode(job, world_size)
    warnings = check_strategy(job, devices)
    recipe = choose_recipe(job, target, world_size)
    launch = _Launch(job, world_size, hosts, facts)
    table: Optional[str] = None
    if recipe == "ascend_ranktable":
        table = cluster_table(hosts, facts).to_json() if platform is None else platform.table
    scheduler = None
    if recipe == "dynamic_cluster":
        scheduler = find_scheduler(job, hosts, facts, world_size)
    host_plans: List[HostPlan] = []
    first_rank = 0 if platform is None else platform.first_rank
    for host in hosts:
        host_plans.append(_host_plan(launch, host, first_rank, table, scheduler))
        first_rank += len(host.devices)
    return Plan(
        run_id=job.run_id,
        cluster=inventory.cluster,
        mode=job.mode,
        recipe=recipe,
        world_size=world_size,
        hosts=tuple(host_plans),
        grace_s=job.grace_s,
        heartbeat_s=job.heartbeat_s,
        watch=tuple(sorted(job.watch.items())),
        ships_worker=job.runs_glm2 or scheduler is not None,
        rank_table=table,
        notes=(*notes, *warnings, *staged_notes(job)),
    )


@dataclass(frozen=True)
class _Launch:
    """What is the same for all hosts."""

    job: Job
    world_size: int
    hosts: Sequence[Host]
    facts: Mapping[str, HostFacts]


def _one_target(hosts: Sequence[Host]) -> str:
    first = hosts[0]
    for host in hosts:
        if host.device_target != first.device_target:
            raise PlanError(
                f"{first.name} has device_target {first.device_target}, but {host.name} has "
                f"{host.device_target}: one job needs one kind",
                hint="choose hosts of one kind with --limit",
            )
        unfit = unfit_for_910(host.devices) if host.device_target == "Ascend" else None
        if unfit:
            raise PlanError(unfit[0], hint=unfit[1], host=host.name)
    return first.device_target


def _check_mode(job: Job, world_size: int) -> None:
    if job.mode == "export" and world_size > 1 and not job.worker_command:
        raise PlanError(
            f"export is the work of one process, but there are {world_size} devices",
            hint="add --limit HOST --devices '[0,1)'",
        )
    if job.mode == "predict" and job.predict_data is None and not job.worker_command:
        raise PlanError("predict has nothing to answer", hint="add --predict_data TEXT")


def _host_plan(
    launch: _Launch,
    host: Host,
    first_rank: int,
    table: Optional[str],
    scheduler: Optional[Scheduler],
) -> HostPlan:
    job = launch.job
    run_dir = f"{host.workdir.rstrip('/')}/runs/{job.run_id}"
    processes = []
    leases = [f"device_{device}" for device in host.devices]
    if scheduler is not None and first_rank == 0:
        # Long before the scheduler listens: two launches at one moment find the same port free.
        leases.append(f"port_{scheduler.port}")
        place = Place(job, host, run_dir, SCHEDULER)
        command = (host.python, "-m", "glm2", "scheduler")
        env = scheduler_environment(place, scheduler)
        processes.append(PlannedProcess(SCHEDULER, None, None, command, env))
    for rank, device in enumerate(host.devices, start=first_rank):
        place = Place(job, host, run_dir, f"rank_{rank}")
        env = rank_environment(
            place,
            rank,
            device,
            launch.world_size,
            scheduler=scheduler,
            rank_table_file=None if table is None else f"{run_dir}/{RANK_TABLE_FILE}",
            threads=threads_per_rank(host, launch.facts.get(host.name)),
        )
        argv = worker_argv(job, host.python, run_dir, launch.world_size, device)
        argv = tuple(staged_text(word, job, host) for word in argv)
        env = tuple((name, staged_text(value, job, host)) for name, value in env)
        processes.append(PlannedProcess(place.name, rank, device, argv, env))
    files = [PlannedFile(SPEC_FILE, _spec(job, host, leases, processes))]
    if job.config is not None:
        files.append(PlannedFile(CONFIG_FILE, _config_text(job, host, run_dir)))
    if table is not None:
        files.append(PlannedFile(RANK_TABLE_FILE, table))
    for process in processes:
        files.extend(_scripts(job, host, run_dir, process))
    files.sort(key=lambda file: file.path)
    return HostPlan(
        host=host.name,
        server_id=host.server_id,
        run_dir=run_dir,
        python=host.python,
        processes=tuple(processes),
        files=tuple(files),
    )


def worker_argv(
    job: Job, python: str, run_dir: str, world_size: int, device_id: int
) -> Tuple[str, ...]:
    """Command of one rank: the job's own, or that of its workload with the guide's options."""
    if job.worker_command:
        return (*job.worker_command, *job.worker_args)
    config = f"{run_dir}/{CONFIG_FILE}"
    checkpoint = ("--load_checkpoint", job.load_checkpoint) if job.load_checkpoint else ()
    if job.workload == "mindformers":
        return _mindformers_argv(job, python, run_dir, world_size, device_id)
    if job.mode == "export":
        return (python, "-m", "glm2", "export", "--config", config, *checkpoint, *job.worker_args)
    words = [python, "-m", "glm2", "--config", config, "--run_mode", job.mode]
    words += ["--use_parallel", str(world_size > 1), *checkpoint]
    if job.predict_data is not None and job.mode == "predict":
        words += ["--predict_data", job.predict_data]
    return (*words, *job.worker_args)


def _mindformers_argv(
    job: Job, python: str, run_dir: str, world_size: int, device_id: int
) -> Tuple[str, ...]:
    """As the guide calls ``run_mindformer.py`` and ``export.py``, through ``node/mindformers.py``,
    which makes metrics of what the script logs."""
    runner = (python, f"{run_dir}/node/mindformers.py")
    config = f"{run_dir}/{CONFIG_FILE}"
    if job.mode == "export":
        script = f"{job.mindformers_dir}/mindformers/tools/export.py"
        return (*runner, script, "--config_path", config, *job.worker_args)
    words = [*runner, f"{job.mindformers_dir}/run_mindformer.py", "--config", config]
    words += ["--run_mode", job.mode, "--use_parallel", str(world_size > 1)]
    if world_size == 1:
        words += ["--device_id", str(device_id)]
    if job.load_checkpoint:
        words += ["--load_checkpoint", job.load_checkpoint]
    if job.predict_data is not None and job.mode == "predict":
        words += ["--predict_data", job.predict_data]
    return (*words, *job.worker_args)


def _config_text(job: Job, host: Host, run_dir: str) -> str:
    if job.config is None:
        raise AssertionError("asked for the text of no configuration")
    source = Location("device_target of the inventory")
    config = set_value(job.config, "context.device_target", host.device_target, source)
    if job.workload == "mindformers":
        # MindFormers puts checkpoint/ and strategy/ there, where they are collected from.
        config = set_value(config, "output_dir", f"{run_dir}/output", Location("the run folder"))
    return dump(staged_values(config, job, host))


def _spec(job: Job, host: Host, leases: Sequence[str], processes: Sequence[PlannedProcess]) -> str:
    """``spec.json`` of the host's supervisor (docs/contracts.md, contract 2)."""
    spec = {
        "schema": 1,
        "run_id": job.run_id,
        "host": host.name,
        "workdir": host.workdir,
        "grace_s": job.grace_s,
        "heartbeat_s": job.heartbeat_s,
        "leases": list(leases),
        "processes": [
            {
                "name": process.name,
                "rank": process.rank,
                "argv": ["bash", f"ranks/{process.name}/launch.sh"],
            }
            for process in processes
        ],
    }
    return json.dumps(spec, indent=1) + "\n"


def _scripts(job: Job, host: Host, run_dir: str, process: PlannedProcess) -> List[PlannedFile]:
    folder = f"ranks/{process.name}"
    if process.rank is None or job.runs_glm2:
        search: Tuple[Tuple[str, str], ...] = (("PYTHONPATH", f"{run_dir}/code"),)
    elif job.workload == "mindformers" and not job.worker_command:
        search = (("PYTHONPATH", staged_text(job.mindformers_dir or "", job, host)),)
    else:
        search = ()
    common = {"name": process.name, "run_id": job.run_id, "host": host.name}
    env = render(
        "env.sh.j2",
        **common,
        cleared=CLUSTER_VARIABLES,
        environment=process.env,
        paths=search,
    )
    launch = render(
        "launch.sh.j2",
        **common,
        setup=host.setup,
        env_file=f"{run_dir}/{folder}/env.sh",
        rank_dir=f"{run_dir}/{folder}",
        argv=process.argv,
    )
    return [
        PlannedFile(f"{folder}/env.sh", env),
        PlannedFile(f"{folder}/launch.sh", launch, 0o700),
    ]
