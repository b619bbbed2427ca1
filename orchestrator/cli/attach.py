"""``glm2-orch attach``, and the background controller behind ``launch --detach``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, say
from orchestrator.errors import Busy, OrchError, Terminated

if TYPE_CHECKING:
    from orchestrator.runs.layout import RunPaths, RunStore


@click.command()
@click.argument("run", default="latest", type=RUN)
@click.option("--show-logs", is_flag=True, help="Print the log lines of all ranks as they come.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Control the run from here even if another controller holds it: it hangs, or is on a "
    "machine that is cut off. That one can do nothing any more.",
)
@output_option("table", "json")
def attach(run: str, show_logs: bool, take_over: bool, output: str) -> None:
    """Follow RUN (default: latest) again: a detached one, or one whose controller died."""
    from orchestrator.cli.ending import follow_to_end, tell_ending
    from orchestrator.cli.recovering import go_on
    from orchestrator.engine import control as controlling
    from orchestrator.engine.control import ended, reopened, watch_in_background
    from orchestrator.engine.recover import current_attempt, is_open
    from orchestrator.runs import lease
    from orchestrator.runs.layout import RunStore, home

    store = RunStore(home())
    paths = current_attempt(store, store.resolve(run))
    if ended(paths) and not is_open(store, paths):
        tell_ending(paths, output)
        return
    try:
        held = lease.acquire(paths.lock, "attach", take_over=take_over)
    except Busy:
        tell_ending(_view_all(store, paths, show_logs), output)
        return
    if ended(paths):  # its controller died before it was started again
        try:
            if not go_on(paths, show_logs=show_logs, output=output):
                tell_ending(paths, output)
        finally:
            held.release()
        return
    if not take_over:
        say(f"run {paths.run_id} had no controller; this command watches it now")
    try:
        with reopened(paths) as found:
            if take_over:
                opened = controlling.take_over(found, held)
                say(f"run {paths.run_id} is controlled from here now (epoch {held.epoch})")
            else:
                opened = found.controlled_by(held)
            follow_to_end(opened, grace_s=opened.plan.grace_s, show_logs=show_logs, output=output)
    except (KeyboardInterrupt, Terminated):
        held.release()
        if not ended(paths):  # else it is another attempt, which was left behind already
            watch_in_background(paths)
            say(f"detached: run {paths.run_id} goes on, watched in the background")
        raise
    finally:
        held.release()


@click.command(hidden=True)
@click.argument("run")
def control(run: str) -> None:
    """Watch RUN until it ends, without a terminal (used by launch --detach)."""
    from orchestrator.cli.ending import follow_to_end
    from orchestrator.engine.control import reopened
    from orchestrator.runs import lease
    from orchestrator.runs.layout import RunStore, home

    paths = RunStore(home()).resolve(run)
    held = lease.acquire(paths.lock, "background controller")
    try:
        with reopened(paths) as found:
            opened = found.controlled_by(held)
            follow_to_end(opened, grace_s=opened.plan.grace_s, show_logs=False, output="table")
    finally:
        held.release()


def _view_all(store: RunStore, paths: RunPaths, show_logs: bool) -> RunPaths:
    """Look on at this attempt and those that follow; returns the last."""
    from orchestrator.engine.recover import is_open, newest_attempt
    from orchestrator.runs.lease import holder

    while True:
        _view(paths, show_logs)
        while is_open(store, paths) and holder(paths.lock) is not None:
            time.sleep(0.2)  # its controller decides, and starts the next
        newest = newest_attempt(store, paths)
        if newest == paths:
            return paths
        paths = newest


def _view(paths: RunPaths, show_logs: bool) -> None:
    """Look on while another process controls the run: Ctrl-C only ends the looking."""
    from orchestrator.cli.progress import RunProgress
    from orchestrator.engine.control import ended
    from orchestrator.logs.tail import read_lines
    from orchestrator.runs.journal import parse_line
    from orchestrator.runs.lease import holder
    from orchestrator.runs.state import read_state

    ranks = {rank.name: rank.rank for rank in read_state(paths).ranks if rank.rank is not None}
    files = {f"metrics {name}": paths.metrics(name) for name in ranks}
    if show_logs:
        files.update({f"log {name}": paths.log(name) for name in ranks})

    def over() -> bool:
        return ended(paths) is not None or holder(paths.lock) is None

    with RunProgress(ranks, show_logs=show_logs).shown() as progress:
        for source, line in read_lines(files, follow=True, ended=over):
            kind, _, name = source.partition(" ")
            if kind == "log":
                progress.log(name, line + b"\n")
            else:
                progress.metrics(name, parse_line(line) or {})
    if ended(paths) is None:
        raise OrchError(
            f"the controller of run {paths.run_id} is gone; the run itself may go on",
            hint=f"watch it from here: glm2-orch attach {paths.run_id}",
        )
