"""``glm2-orch plan``: what a launch would do, without touching a host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import click

from orchestrator.cli.output import console, output_option, say, writing_to
from orchestrator.cli.request import inventory_options, job_options
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan


@click.command()
@inventory_options
@job_options
@click.option(
    "--facts", "facts_file", metavar="FILE", help="Facts kept by `glm2-orch facts --out`."
)
@click.option("--out", "out_dir", metavar="DIR", help="Write every file that would be sent.")
@output_option("table", "json")
def plan(
    inventory_file: str,
    limit: Optional[str],
    facts_file: Optional[str],
    out_dir: Optional[str],
    output: str,
    **request: Any,
) -> None:
    """Print the plan of a launch: ranks, hosts, devices and every file that would be sent.

    The same inputs give the same bytes. Device IPs come from the inventory or from --facts. Spares
    take the places of quarantined hosts (see `glm2-orch hosts`).
    """
    from orchestrator.cli import request as requests
    from orchestrator.engine.check import check_job

    inventory = requests.read_inventory(inventory_file, limit)
    inventory = requests.with_devices(inventory, request["devices"])
    inventory, notes = requests.without_quarantined(inventory)
    run_id = request["run_id"] or "dry-run"
    job = requests.build_job(inventory, request["mode"], request, run_id=run_id)
    check_job(job, inventory.hosts)
    made = requests.plan_offline(inventory, job, facts_file, notes)
    if out_dir is not None:
        with writing_to(out_dir):
            _write(made, Path(out_dir))
    print_plan(made, output)


def print_plan(plan: Plan, output: str) -> None:
    """The plan on stdout, as JSON (exactly the bytes of plan.json) or as a table of ranks."""
    if output == "json":
        click.echo(plan.to_json(), nl=False)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("RANK", "HOST", "SERVER_ID", "DEVICE", "RUN FOLDER"):
        table.add_column(column, justify="right" if column in ("RANK", "DEVICE") else "left")
    for host in plan.hosts:
        for process in host.processes:
            rank = process.name if process.rank is None else str(process.rank)
            device = "" if process.device_id is None else str(process.device_id)
            table.add_row(rank, host.host, host.server_id, device, host.run_dir)
    console().print(table)
    files = sum(len(host.files) for host in plan.hosts)
    say(
        f"{plan.mode} on {plan.cluster}: {plan.world_size} ranks on {len(plan.hosts)} hosts, "
        f"recipe {plan.recipe}, {files} files, digest {plan.digest[:12]}"
    )
    say_notes(plan)


def say_notes(plan: Plan) -> None:
    """What a person should know before the plan is carried out."""
    for note in plan.notes:
        say(f"note: {note}")


def _write(plan: Plan, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint="give a new folder to --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    for host in plan.hosts:
        for item in host.files:
            target = out / host.host / item.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(item.text, encoding="utf-8")
            target.chmod(item.mode)
    say(f"wrote the plan and the files of {len(plan.hosts)} hosts to {out}")
