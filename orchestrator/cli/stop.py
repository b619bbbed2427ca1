"""``glm2-orch stop``: end a run on all hosts and prove that nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import OrchError, PartialFailure, one_error

if TYPE_CHECKING:
    from orchestrator.transport.pool import Outcome


@click.command()
@click.argument("run", default="latest", type=RUN)
@click.option("--grace", type=float, help="Seconds from TERM to KILL; default: the job's own.")
@output_option("table", "json")
def stop(run: str, grace: Optional[float], output: str) -> None:
    """End RUN (default: latest) on every host: TERM, a grace to save, KILL.

    Says for each host that it is clean, or what is left. Stopping twice does no harm.
    """
    from orchestrator.cli.progress import RunProgress, steps_shown
    from orchestrator.engine.control import end_unwatched, ended, reopened, stop_run
    from orchestrator.engine.launch import watch_run
    from orchestrator.engine.recover import current_attempt, forbid, is_open
    from orchestrator.runs.layout import RunStore, home

    store = RunStore(home())
    paths = current_attempt(store, store.resolve(run))
    was_over = ended(paths) is not None
    if is_open(store, paths):
        forbid(paths)
    with reopened(paths) as opened:
        grace_s = opened.plan.grace_s if grace is None else grace
        with steps_shown() as progress:
            outcomes = stop_run(opened, grace_s=grace_s, progress=progress)
        reached = [outcome for outcome in outcomes if outcome.error is None]
        if not was_over and len(reached) == len(outcomes):
            quiet = RunProgress({}, show_logs=False)
            end_unwatched(opened, lambda held: watch_run(held, quiet, grace_s=grace_s))
    _tell(paths.run_id, outcomes, output)


def _tell(run_id: str, outcomes: List[Outcome[Dict[str, Any]]], output: str) -> None:
    from orchestrator.cli.ending import left_lines
    from orchestrator.engine.launch import what_is_left

    left = [
        {"host": outcome.host, **what_is_left(outcome.value)}
        for outcome in outcomes
        if outcome.value is not None and what_is_left(outcome.value)
    ]
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if output == "json":
        hosts = [
            {"host": item.host, "error": str(item.error) if item.error else None}
            | (item.value or {})
            for item in outcomes
        ]
        print_json({"run_id": run_id, "clean": not left and not errors, "hosts": hosts})
    for line in left_lines(left):
        say(line)
    if errors:
        raise _unreached(run_id, errors, len(outcomes))
    if left:
        raise PartialFailure(
            f"run {run_id} left something on {', '.join(str(one['host']) for one in left)}",
            hint="processes that stay may hang in the driver; look at them on the host, then "
            "stop again",
        )
    count = len(outcomes)
    say(
        f"run {run_id} is stopped; {count} of {count} hosts are clean: no process, port, device, "
        "shared memory or lock of it is left"
    )


def _unreached(run_id: str, errors: List[OrchError], hosts: int) -> OrchError:
    if len(errors) == hosts:
        return one_error(f"run {run_id}: none of the {hosts} hosts could be asked", errors)
    names = ", ".join(error.host for error in errors)
    return PartialFailure(
        f"run {run_id} was stopped on {hosts - len(errors)} of {hosts} hosts; not on {names}: "
        f"{errors[0].message}",
        hint="repeat the stop when they answer again",
    )
