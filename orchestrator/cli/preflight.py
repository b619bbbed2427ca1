"""``glm2-orch preflight``: is every host, device and network fit for a job?"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Mapping, Optional, Sequence

import click

from orchestrator.cli.output import console, json_text, output_option, print_json, say, seconds
from orchestrator.cli.request import MODES, inventory_options
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Host, Inventory
    from orchestrator.job import Job
    from orchestrator.preflight.findings import Finding

_STYLES = {"OK": "green", "SKIP": "dim", "WARN": "yellow", "CRIT": "bold red"}
_SHOWN_ROWS = 200
_NAMED = 6


def list_checks(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """``--list-checks`` prints the page of all checks and needs no inventory."""
    from orchestrator.preflight.summary import page

    if value:
        click.echo(page(), nl=False)
        ctx.exit()


@click.command()
@inventory_options
@click.option("--devices", metavar="RANGE", help="Devices of each host, e.g. [0,8).")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="finetune",
    show_default=True,
    help="Mode of the job whose files are looked for.",
)
@click.option("--config", metavar="FILE", help="Worker YAML of the job; default: the inventory's.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for launch.")
@click.option("--load-checkpoint", "--load_checkpoint", metavar="FILE")
@click.option("--full", is_flag=True, help="Ping all pairs of hosts; read large files whole.")
@click.option("--quarantine", is_flag=True, help="Keep bad hosts out of plans for 24 hours.")
@click.option(
    "--list-checks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=list_checks,
    help="Print what is checked (Markdown).",
)
@output_option("table", "json", "jsonl")
def preflight(
    inventory_file: str,
    limit: Optional[str],
    full: bool,
    quarantine: bool,
    output: str,
    **request: Any,
) -> None:
    """Check every host, device and link before a job is started.

    Nothing is left on the hosts. Spares are checked with --limit spares. The exit status is 0 when
    all is well or there are warnings only, 4 when something is critical, 5 when that is nothing
    but hosts that cannot be reached.
    """
    from orchestrator.cli import request as requests
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.hosts import connected
    from orchestrator.engine.preflight import preflight as check
    from orchestrator.preflight.findings import exit_status

    inventory = requests.read_inventory(inventory_file, limit)
    inventory = requests.with_devices(inventory, request["devices"])
    job = _job(inventory, request)
    begun = time.monotonic()
    with connected(inventory.hosts) as transports, steps_shown() as progress:
        result = check(inventory.hosts, transports, job, full=full, progress=progress)
    if output == "json":
        print_json({"hosts": len(inventory.hosts), "findings": _records(result.findings)})
    elif output == "jsonl":
        for record in _records(result.findings):
            click.echo(json_text({"schema": 1, **record}))
    else:
        print_findings(result.findings, inventory.hosts, time.monotonic() - begun)
    if quarantine:
        _quarantine(inventory, result.findings)
    click.get_current_context().exit(exit_status(result.findings))


def print_findings(findings: Sequence[Finding], hosts: Sequence[Host], took: float) -> None:
    """The table: what is well in one line, then warnings, then what is critical, last the sum."""
    from rich.text import Text

    from orchestrator.logs.text import printable
    from orchestrator.preflight.summary import rows, skipped, verdict, well

    screen = console()

    def line(status: str, text: str) -> None:
        head = Text(f"{status:<5}", _STYLES[status])
        screen.print(Text.assemble(head, printable(text)), soft_wrap=True)

    good = well(findings)
    if good:
        line("OK", ", ".join(good))
    for reason, names in skipped(findings):
        what = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} checks"
        line("SKIP", f"{what}: {reason}")
    shown = rows(findings)
    for row in shown[-_SHOWN_ROWS:]:
        where = f"{row.places}: " if row.places else ""
        line(row.status, f"{row.check}: {where}{row.evidence}")
        screen.print(f"      next: {printable(row.remedy)}", soft_wrap=True, markup=False)
    if len(shown) > _SHOWN_ROWS:
        screen.print(f"({len(shown) - _SHOWN_ROWS} more are left out above; -o json has all)")
    worst = "CRIT" if any(r.status == "CRIT" for r in shown) else "WARN" if shown else "OK"
    summary = f"{verdict(findings, len(hosts))} ({seconds(took)})"
    screen.print(Text(summary, _STYLES[worst]), soft_wrap=True)


def say_findings(findings: Sequence[Finding], hosts: Sequence[Host]) -> None:
    """For ``launch``: each warning in a line, what was skipped once, and the sum. What is
    critical is said by the error."""
    from orchestrator.logs.text import printable
    from orchestrator.preflight.checks import not_for
    from orchestrator.preflight.summary import rows, verdict

    for row in rows(findings):
        if row.status == "WARN":
            where = f"{row.places}: " if row.places else ""
            say(printable(f"warning: {row.check}: {where}{row.evidence}"))
    senseless = len(not_for(hosts))
    targets = " or ".join(sorted({host.device_target for host in hosts}))
    note = f"; {senseless} checks are not for {targets} and were skipped" if senseless else ""
    say(f"preflight: {verdict(findings, len(hosts))}{note}")


def _job(inventory: Inventory, request: Mapping[str, Any]) -> Optional[Job]:
    """The job that is described, as far as it is: a preflight needs none."""
    from orchestrator.cli.request import build_job

    described = request["config"] or {"config", "worker_command"} & set(inventory.job)
    if not described:
        if request["settings"] or request["load_checkpoint"]:
            raise UsageError("--set and --load-checkpoint need a job", hint="add --config")
        return None
    options = {
        **dict.fromkeys(("recipe", "worker_command", "predict_data")),
        **dict.fromkeys(("environment", "recovery", "watch", "worker_args"), ()),
        **request,
    }
    return build_job(inventory, request["mode"], options, run_id="preflight")


def _records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {("class" if key == "klass" else key): value for key, value in asdict(finding).items()}
        for finding in findings
    ]


def _quarantine(inventory: Inventory, findings: Sequence[Finding]) -> None:
    from orchestrator.preflight.findings import bad_hosts
    from orchestrator.runs.layout import home
    from orchestrator.runs.quarantine import PREFLIGHT, PREFLIGHT_S, Quarantine

    bad = bad_hosts(findings)
    if not bad:
        say("no host is quarantined: none is to blame for anything critical")
        return
    kept = Quarantine(home(), inventory.cluster).add(bad, by=PREFLIGHT, lasting=PREFLIGHT_S)
    for entry in kept:
        say(f"{entry.host} is quarantined {entry.ends}: {entry.reason}")
