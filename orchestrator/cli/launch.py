"""``glm2-orch launch``: plan, send, start, follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import click

from orchestrator.cli.output import output_option, print_json, say
from orchestrator.cli.request import inventory_options, job_options
from orchestrator.errors import Terminated

if TYPE_CHECKING:
    from orchestrator.engine.launch import OpenRun
    from orchestrator.planning.plan import Plan


@click.command(context_settings={"ignore_unknown_options": False})
@inventory_options
@job_options
@click.option(
    "--detach", is_flag=True, help="Return once the ranks run; a controller stays behind."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and touch no host.")
@click.option("--skip-preflight", is_flag=True, help="Do not check hosts and devices first.")
@click.option("--yes", is_flag=True, help="Do not ask before starting on several hosts.")
@click.option("--show-logs", is_flag=True, help="Print the log lines of all ranks as they come.")
@output_option("table", "json")
def launch(
    inventory_file: str,
    limit: Optional[str],
    detach: bool,
    dry_run: bool,
    skip_preflight: bool,
    yes: bool,
    show_logs: bool,
    output: str,
    **request: Any,
) -> None:
    """Run a job on the servers of an inventory and follow it to its end.

    MODE is train, finetune, eval, predict or export; arguments after -- go to the worker. The exit
    status is that of the job: 0 only when every rank succeeded. The first Ctrl-C leaves the job
    running and detaches; `glm2-orch stop` ends it. What `glm2-orch preflight` finds critical stops
    the launch before anything is sent.
    """
    from orchestrator.cli import request as requests
    from orchestrator.cli.ending import follow_to_end
    from orchestrator.cli.plan import print_plan, say_notes
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.check import check_job
    from orchestrator.engine.control import is_running
    from orchestrator.engine.hosts import connected
    from orchestrator.engine.launch import open_run, start_run
    from orchestrator.planning.planner import plan as make_plan
    from orchestrator.runs import lease
    from orchestrator.runs.layout import RunStore, home

    inventory = requests.read_inventory(inventory_file, limit)
    inventory = requests.with_devices(inventory, request["devices"])
    inventory, notes = requests.without_quarantined(inventory)
    run_id = request["run_id"] or ("dry-run" if dry_run else None)
    job = requests.build_job(inventory, request["mode"], request, run_id=run_id)
    check_job(job, inventory.hosts)
    if dry_run:
        print_plan(requests.plan_offline(inventory, job, None, notes), output)
        return
    store = RunStore(home())
    with connected(inventory.hosts) as transports:
        ask = requests.facts_unchecked if skip_preflight else requests.facts_checked
        plan = make_plan(inventory, job, ask(inventory, job, transports), notes)
        say_notes(plan)
        _confirm(plan, yes)
        run = open_run(store, inventory, plan, transports)
        say(f"run {plan.run_id}: {_ranks_on_hosts(plan)}")
        held = lease.acquire(run.paths.lock, "launch")
        try:
            with steps_shown() as progress:
                start_run(run, progress)
            if not detach:
                follow_to_end(run, grace_s=plan.grace_s, show_logs=show_logs, output=output)
                return
        except (KeyboardInterrupt, Terminated):
            # Ctrl-C, a log-out or a time limit end this command; the job goes on.
            if is_running(run.paths):
                held.release()
                _leave_behind(run, "detached")
            raise
        finally:
            held.release()
        pid = _leave_behind(run, "running")
    if output == "json":
        print_json({"run_id": plan.run_id, "status": "running", "controller_pid": pid})
    else:
        click.echo(plan.run_id)


def _leave_behind(run: OpenRun, how: str) -> int:
    from orchestrator.engine.control import watch_in_background

    pid = watch_in_background(run.paths)
    run_id = run.paths.run_id
    say(f"{how}: run {run_id} goes on, watched in the background")
    say(f"  follow it: glm2-orch attach {run_id}")
    say(f"  end it:    glm2-orch stop {run_id}")
    return pid


def _ranks_on_hosts(plan: Plan) -> str:
    ranks = f"{plan.world_size} rank" + ("s" if plan.world_size != 1 else "")
    return f"{ranks} on {len(plan.hosts)} host" + ("s" if len(plan.hosts) != 1 else "")


def _confirm(plan: Plan, yes: bool) -> None:
    import sys

    if yes or len(plan.hosts) < 2 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    click.confirm(f"Start {_ranks_on_hosts(plan)}?", default=True, abort=True, err=True)
