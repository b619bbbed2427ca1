"""``glm2-orch logs``: the raw logs of the ranks, as copied to the controller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Dict, Optional

import click

from orchestrator.cli.output import output_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.runs.layout import RunPaths
    from orchestrator.runs.state import RunState


@click.command()
@click.argument("run", default="latest")
@click.option("--rank", "ranks", metavar="0-7,9", help="Only these ranks.")
@click.option("--host", "host", metavar="PATTERN", help="Only ranks on hosts that fit (* and ?).")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines of each.")
@click.option("--grep", metavar="RE", help="Only lines that this regular expression finds.")
@output_option("table", "jsonl")
def logs(
    run: str,
    ranks: Optional[str],
    host: Optional[str],
    follow: bool,
    lines: Optional[int],
    grep: Optional[str],
    output: str,
) -> None:
    """Print the logs of RUN (default: latest), each line with the rank it comes from."""
    import json

    from orchestrator.logs.tail import read_lines
    from orchestrator.logs.text import decode_line
    from orchestrator.runs.layout import RunStore, home
    from orchestrator.runs.state import read_state

    paths = RunStore(home()).resolve(run)
    files = _files(paths, read_state(paths), ranks, host)
    pattern = _pattern(grep)

    def over() -> bool:
        # A run that nobody watches gets no new lines either.
        state = read_state(paths)
        return state.status.is_terminal or state.unwatched

    width = max(map(len, files), default=0)
    for name, raw in read_lines(files, follow=follow, ended=over, last=lines):
        text = decode_line(raw)
        if pattern is not None and not pattern.search(text):
            continue
        if output == "jsonl":
            click.echo(json.dumps({"process": name, "line": text}, ensure_ascii=False))
        else:
            click.echo(f"{name:<{width}} | {text}")


def _files(
    paths: RunPaths, state: RunState, ranks: Optional[str], host: Optional[str]
) -> Dict[str, Path]:
    from fnmatch import fnmatchcase

    from orchestrator.logs.ranks import parse_ranks

    chosen = list(state.processes)
    if ranks is not None:
        wanted = parse_ranks(ranks)
        chosen = [process for process in chosen if process.rank in wanted]
    if host is not None:
        chosen = [process for process in chosen if fnmatchcase(process.host, host)]
    if not chosen:
        raise UsageError(
            f"no rank of run {state.run_id} fits",
            hint=f"it has ranks 0 to {max(state.world_size - 1, 0)}; see: glm2-orch status",
        )
    chosen.sort(key=lambda process: (process.rank is None, process.rank or 0))
    return {process.name: paths.log(process.name) for process in chosen}


def _pattern(grep: Optional[str]) -> Optional[re.Pattern[str]]:
    try:
        return None if grep is None else re.compile(grep)
    except re.error as error:
        raise UsageError(
            f"--grep {grep!r} is not a regular expression: {error}",
            hint="put a backslash before characters such as ( [ *",
        ) from None
