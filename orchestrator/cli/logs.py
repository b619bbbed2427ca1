"""``glm2-orch logs``: the raw logs of the ranks, as copied to the controller."""

from __future__ import annotations

import json
import math
import re
import time
from typing import TYPE_CHECKING, Dict, List, Optional

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.logs.collapse import Collapsed
    from orchestrator.runs.layout import RunPaths
    from orchestrator.runs.state import RunState


@click.command()
@click.argument("run", default="latest", type=RUN)
@click.option("--rank", "ranks", metavar="0-7,9", help="Only these ranks.")
@click.option("--host", "host", metavar="PATTERN", help="Only ranks on hosts that fit (* and ?).")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines of each.")
@click.option("--grep", metavar="RE", help="Only lines that this regular expression finds.")
@click.option(
    "--collapse",
    is_flag=True,
    help="Show lines that several ranks print alike once, with the ranks.",
)
@output_option("table", "jsonl")
def logs(
    run: str,
    ranks: Optional[str],
    host: Optional[str],
    follow: bool,
    lines: Optional[int],
    grep: Optional[str],
    collapse: bool,
    output: str,
) -> None:
    """Print the logs of RUN (default: latest), each line with the rank it comes from.

    With --collapse a line is held back for up to two seconds, for other ranks to print it too.
    Lines that differ only in their time and process ids are alike.
    """
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

    shown = _Collapsing(list(files), follow, output) if collapse else _Plain(list(files), output)
    for name, raw in read_lines(files, follow=follow, ended=over, last=lines, wait=shown.wait):
        text = decode_line(raw)
        if pattern is None or pattern.search(text):
            shown.line(name, text)
    shown.end()


class _Plain:
    """Each line with the process it comes from."""

    def __init__(self, names: List[str], output: str) -> None:
        self._width = max(map(len, names), default=0)
        self._output = output

    def line(self, name: str, text: str) -> None:
        if self._output == "jsonl":
            click.echo(json.dumps({"process": name, "line": text}, ensure_ascii=False))
        else:
            click.echo(f"{name:<{self._width}} | {text}")

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def end(self) -> None:
        pass


class _Collapsing(_Plain):
    """Lines that are alike once, with the ranks that printed them."""

    def __init__(self, names: List[str], follow: bool, output: str) -> None:
        from orchestrator.logs.collapse import Collapser

        super().__init__(names, output)
        # What is there already is read file by file: only what comes later has a time of its own.
        self._held = Collapser(names, window_s=2.0 if follow else math.inf)

    def line(self, name: str, text: str) -> None:
        self._show(self._held.add(name, text, time.monotonic()))

    def wait(self, seconds: float) -> None:
        self._show(self._held.tick(time.monotonic()))
        super().wait(seconds)

    def end(self) -> None:
        self._show(self._held.flush())

    def _show(self, lines: List[Collapsed]) -> None:
        for line in lines:
            if self._output == "jsonl":
                record = {"processes": list(line.processes), "line": line.text}
                click.echo(json.dumps(record, ensure_ascii=False))
            else:
                click.echo(f"[{line.label()}] {line.text}")


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
