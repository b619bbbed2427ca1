"""``glm2-orch runs``: the runs that this controller knows, and removing old ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import click

from orchestrator.cli.output import console, output_option, print_json, say
from orchestrator.errors import PartialFailure, UsageError

if TYPE_CHECKING:
    from orchestrator.runs.layout import RunPaths, RunStore
    from orchestrator.runs.state import RunState

_LAST = click.option("-n", "--last", type=click.IntRange(min=1), default=20, show_default=True)


@click.group(invoke_without_command=True)
@_LAST
@output_option("table", "json")
@click.pass_context
def runs(ctx: click.Context, last: int, output: str) -> None:
    """List the last runs, the newest last; or remove old ones (runs prune)."""
    if ctx.invoked_subcommand is None:
        _list(last, output)


@runs.command("list")
@_LAST
@output_option("table", "json")
def list_runs(last: int, output: str) -> None:
    """List the last runs, the newest last."""
    _list(last, output)


@runs.command()
@click.option("--older-than", metavar="TIME", help="Only runs that ended before, e.g. 30d or 12h.")
@click.option(
    "--keep", type=click.IntRange(min=0), metavar="N", help="The N newest runs stay in any case."
)
@click.option(
    "--hosts", is_flag=True, help="Remove the runs' folders on the hosts too, checkpoints and all."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option("table", "json")
def prune(
    older_than: Optional[str],
    keep: Optional[int],
    hosts: bool,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Remove the record of old runs: journal, logs, and checkpoints collected into it.

    A run that has not ended is never removed. With --hosts its folders on the hosts go first;
    where a host does not answer, the record stays, so that the command can be repeated.
    """
    from orchestrator.cli.hosts import parse_duration
    from orchestrator.runs.layout import RunStore, home

    if older_than is None and keep is None:
        raise UsageError(
            "nothing says which runs are old", hint="give --older-than 30d, --keep 20, or both"
        )
    before = (
        None if older_than is None else time.time() - parse_duration(older_than, "--older-than")
    )
    chosen = _old(RunStore(home()), before, keep)
    names = [paths.run_id for paths in chosen]
    if dry_run or not chosen:
        say(f"{_counted(len(chosen))} would be removed" if chosen else "no run is old enough")
        _print(output, names if dry_run else [], {}, dry_run=dry_run)
        return
    _confirm(f"Remove {_counted(len(chosen))}{' here and on their hosts' * hosts}?", yes)
    failed: Dict[str, str] = {}
    for paths in chosen:
        problem = _remove(paths, hosts)
        if problem is not None:
            failed[paths.run_id] = problem
    removed = [name for name in names if name not in failed]
    for name, problem in failed.items():
        say(f"{name}: {problem}")
    _print(output, removed, failed, dry_run=False)
    say(f"removed {_counted(len(removed))}")
    if failed:
        raise PartialFailure(
            f"{_counted(len(failed))} could not be removed",
            hint="repeat the command when the hosts answer, or leave --hosts out",
        )


def _list(last: int, output: str) -> None:
    from datetime import datetime

    from rich.table import Table

    from orchestrator.cli.status import state_record
    from orchestrator.logs.text import printable
    from orchestrator.runs.layout import RunPaths, RunStore, home
    from orchestrator.runs.state import read_state

    store = RunStore(home())
    states = [read_state(RunPaths(store.root / name)) for name in store.names()[-last:]]
    if output == "json":
        print_json({"runs": [state_record(state) for state in states]})
        return
    if not states:
        say("there is no run yet; start one: glm2-orch launch")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("RUN", "STATE", "MODE", "CLUSTER", "RANKS", "STARTED", "EXIT"):
        table.add_column(column)
    for state in states:
        started = datetime.fromtimestamp(state.created or 0).strftime("%Y-%m-%d %H:%M:%S")
        row: List[str] = [state.run_id, state.status.value, state.mode, state.cluster]
        row += [str(state.world_size), started if state.created else "-"]
        row.append("-" if state.exit_status is None else str(state.exit_status))
        table.add_row(*map(printable, row))
    console().print(table)


def _old(store: RunStore, before: Optional[float], keep: Optional[int]) -> List[RunPaths]:
    """Ended runs beyond the ``keep`` newest that ended before ``before``; oldest first."""
    from orchestrator.runs.layout import RunPaths
    from orchestrator.runs.lease import holder
    from orchestrator.runs.state import read_state

    names = store.names()
    chosen = []
    for name in names[: max(0, len(names) - (keep or 0))]:
        paths = RunPaths(store.root / name)
        state = read_state(paths)
        if _over(state) and holder(paths.lock) is None and _ended_before(state, before):
            chosen.append(paths)
    return chosen


def _over(state: RunState) -> bool:
    return state.status.is_terminal


def _ended_before(state: RunState, before: Optional[float]) -> bool:
    return before is None or (state.ended is not None and state.ended < before)


def _remove(paths: RunPaths, hosts: bool) -> Optional[str]:
    """Remove one run; why not, where it could not be."""
    import shutil

    from orchestrator.errors import OrchError

    try:
        if hosts:
            from orchestrator.engine.control import reopened
            from orchestrator.engine.pruning import remove_from_hosts

            with reopened(paths) as run:
                left = remove_from_hosts(run)
            if left:
                return "; ".join(f"{host}: {why}" for host, why in left.items())
        shutil.rmtree(paths.dir)
    except OrchError as error:
        return str(error)
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    return None


def _confirm(question: str, yes: bool) -> None:
    import sys

    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(question, default=False, abort=True, err=True)


def _print(output: str, names: Sequence[str], failed: Dict[str, str], *, dry_run: bool) -> None:
    if output == "json":
        record: Dict[str, Any] = {"removed": [] if dry_run else list(names), "failed": failed}
        print_json({**record, "would_remove": list(names) if dry_run else []})
    else:
        for name in names:
            click.echo(name)


def _counted(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
