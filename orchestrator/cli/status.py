"""``glm2-orch status``: where a run is, from the journals on the controller."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.ending import left_lines
from orchestrator.cli.output import console, output_option, print_json, say, seconds

if TYPE_CHECKING:
    from orchestrator.runs.state import HostState, ProcessState, RunState


@click.command()
@click.argument("run", default="latest", type=RUN)
@click.option("--live", is_flag=True, help="Ask the hosts too, instead of the journal only.")
@click.option(
    "-w", "--watch", "watched", is_flag=True, help="Keep the picture fresh until the run is over."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks.",
)
@output_option("table", "json")
def status(run: str, live: bool, watched: bool, interval: float, output: str) -> None:
    """Show the state of RUN (default: latest).

    With --watch a terminal shows all hosts and ranks at a glance; with --live their devices too,
    where there is npu-smi. In a pipe --watch prints a line whenever something changed.

    Exit status: 0 while it runs and after success, otherwise that of its ending.
    """
    from orchestrator.engine.recover import attempts_shown, current_attempt
    from orchestrator.runs.journal import read_events
    from orchestrator.runs.layout import RunStore, home
    from orchestrator.runs.state import read_state

    store = RunStore(home())
    paths = current_attempt(store, store.resolve(run))
    if watched:
        from orchestrator.cli.watch import watch

        ended = watch(paths, interval=interval, live=live, output=output)
        if ended:
            raise SystemExit(ended)
        return
    answers = _ask(paths) if live else None
    state = read_state(paths)
    attempts = attempts_shown(store, paths)
    if output == "json":
        record = {**state_record(state), "attempts": attempts}
        if answers is not None:
            record["live"] = answers
        print_json(record)
    else:
        _print(state, time.time())
        for one in attempts:
            then = f"; {one['sentence']}" if one["sentence"] else ""
            say(f"attempt {one['run_id']}: {one['outcome'] or 'not over'}{then}")
        for host, answer in (answers or {}).items():
            say(f"{host}: {answer.get('state') or answer.get('unreachable')}")
        for event in read_events(paths.journal):
            if event.get("event") == "notify-failed":
                whom = event.get("to", "nobody")
                say(f"{whom} was not told of its {event.get('of')}: {event.get('problem')}")
    if state.exit_status:
        raise SystemExit(state.exit_status)


def state_record(state: RunState) -> Dict[str, Any]:
    """The state as JSON output shows it."""
    ranks = state.ranks
    return {
        "run_id": state.run_id,
        "status": state.status.value,
        "exit_status": state.exit_status,
        "cause": state.cause,
        "cluster": state.cluster,
        "mode": state.mode,
        "recipe": state.recipe,
        "created": state.created,
        "ended": state.ended,
        "controller": state.controller,
        "unwatched": state.unwatched,
        "start_spread": state.spread,
        "left": list(state.left),
        "hosts_clean": state.certified,
        "ranks_total": len(ranks),
        "ranks_succeeded": sum(rank.status.value == "succeeded" for rank in ranks),
        "ranks_failed": sum(rank.status.value == "failed" for rank in ranks),
        "hosts": [vars(host) for host in state.hosts],
        "processes": [
            {**vars(process), "status": process.status.value} for process in state.processes
        ],
    }


def _print(state: RunState, now: float) -> None:
    from rich.table import Table

    from orchestrator.logs.text import printable

    table = Table(box=None, pad_edge=False)
    for column in ("RANK", "HOST", "STATE", "PHASE", "STEP", "LOSS", "TOKENS/S/P", "EXIT", "HEARD"):
        table.add_column(column, justify="right" if column in _NUMERIC else "left")
    hosts = {host.name: host for host in state.hosts}
    services = [process for process in state.processes if process.rank is None]
    for process in (*state.ranks, *services):
        table.add_row(*_row(process, hosts.get(process.host), state, now))
    console().print(table)
    for line in _closing(state, now):
        click.echo(printable(line))


_NUMERIC = {"RANK", "STEP", "LOSS", "TOKENS/S/P", "EXIT"}


def _row(
    process: ProcessState, host: Optional[HostState], state: RunState, now: float
) -> List[str]:
    heard = "-"
    if not state.status.is_terminal and host is not None and host.heard is not None:
        heard = f"{seconds(max(0.0, now - host.heard))} ago"
    steps = "" if process.steps is None else f"/{process.steps}"
    return [
        process.name if process.rank is None else str(process.rank),
        process.host,
        process.status.value,
        process.phase or "-",
        "-" if process.step is None else f"{process.step}{steps}",
        "-" if process.loss is None else f"{process.loss:.4f}",
        "-" if process.tokens_per_s_per_p is None else f"{process.tokens_per_s_per_p:.0f}",
        "-" if process.exit_code is None else str(process.exit_code),
        heard,
    ]


def _closing(state: RunState, now: float) -> List[str]:
    lines: List[str] = []
    if state.unwatched and state.created is not None:
        lines.append(
            "no controller watches this run; take over with: glm2-orch attach " + state.run_id
        )
    lines += _spread(state)
    cause = (state.cause or {}).get("sentence")
    if cause:
        lines.append(f"cause: {cause}")
    lines += left_lines(state.left)
    ranks = state.ranks
    good = sum(rank.status.value == "succeeded" for rank in ranks)
    age = (state.ended or now) - (state.created or now)
    lines.append(
        f"{state.run_id}: {state.status.value}, {state.mode} on {state.cluster}, "
        f"{good} of {len(ranks)} ranks succeeded, {seconds(age)}"
    )
    return lines


def _spread(state: RunState) -> List[str]:
    """How far apart the hosts were started, where there is more than one."""
    if state.spread is None or len(state.hosts) < 2:
        return []
    limit = state.spread.get("limit_s")
    of = "" if limit is None else f" (HCCL_CONNECT_TIMEOUT is {limit:g} s)"
    return [f"the hosts were started within {state.spread['spread_s']:.2f} s{of}"]


def _ask(paths: Any) -> Dict[str, Dict[str, Any]]:
    from orchestrator.engine.control import reopened
    from orchestrator.engine.hosts import on_each

    with reopened(paths) as run:
        plans = {host.host: host for host in run.plan.hosts}
        outcomes = on_each(
            run.transports, "asking hosts", lambda t: run.supervisor(plans[t.name]).status()
        )
    return {
        outcome.host: (
            {"unreachable": str(outcome.error)} if outcome.value is None else outcome.value
        )
        for outcome in outcomes
    }
