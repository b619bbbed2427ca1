"""What a followed run looks like on stderr: a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import click

from orchestrator.cli.output import console, seconds
from orchestrator.logs.text import decode_line, printable

_PLAIN_EVERY_S = 5.0


class RunProgress:
    """Observer of a run: events as lines, training progress as one line that is kept fresh."""

    def __init__(self, ranks: Mapping[str, int], *, show_logs: bool) -> None:
        self._console = console(stderr=True)
        self._live = self._console.is_terminal
        self._ranks = ranks
        self.wants_logs = show_logs
        self._latest: Dict[str, Mapping[str, Any]] = {}
        self._phases: Dict[str, str] = {}
        self._rests: Dict[str, bytes] = {}
        self._status: Any = None
        self._last_plain = 0.0
        self._last_text = ""

    @contextmanager
    def shown(self) -> Iterator[RunProgress]:
        """Show the live line for as long as the block lasts."""
        if not self._live:
            yield self
            return
        with self._console.status("waiting for the hosts", spinner="line") as self._status:
            yield self

    def line(self, text: str) -> None:
        """One line of talk above the live line."""
        if self._live:
            self._console.print(printable(text), markup=False, soft_wrap=True)
        else:
            click.echo(printable(text), err=True)

    def host_event(self, host: str, event: Mapping[str, Any]) -> None:
        kind, name = event.get("event"), event.get("name")
        if kind == "process_exited":
            code = event.get("code")
            note = " (ended by us)" if event.get("collateral") else ""
            if code != 0 or note:
                self.line(f"{name} on {host} exited with {code}{note}")
        elif kind == "stopping":
            self.line(f"{host} is stopping: {event.get('reason')}")

    def metrics(self, process: str, line: Mapping[str, Any]) -> None:
        if "phase" in line:
            self._phases[process] = str(line["phase"])
        if "step" in line:
            self._latest[process] = line
        self._refresh()

    def log(self, process: str, data: bytes) -> None:
        *lines, self._rests[process] = (self._rests.get(process, b"") + data).split(b"\n")
        for raw in lines:
            self.line(f"[{process}] {decode_line(raw)}")

    def decision(self, sentence: str) -> None:
        self.line(sentence)

    def connection(self, host: str, problem: Optional[str]) -> None:
        if problem is None:
            self.line(f"{host}: connected again; nothing was lost")
        else:
            self.line(f"{host}: connection cut ({problem}); trying again, the run goes on there")

    def _refresh(self) -> None:
        text = self._summary()
        if self._live:
            if self._status is not None:
                self._status.update(text)
        elif text != self._last_text and time.monotonic() - self._last_plain >= _PLAIN_EVERY_S:
            self._last_plain, self._last_text = time.monotonic(), text
            self.line(text)

    def _summary(self) -> str:
        if not self._latest:
            return "ranks: " + _counts(self._phases.values())
        slowest = min(self._latest.values(), key=lambda line: line.get("step", 0))
        step, steps = slowest.get("step", 0), slowest.get("steps")
        parts = [f"step {step}/{steps or '?'}", f"loss {_number(slowest.get('loss'), 4)}"]
        speeds = [line.get("tokens_per_s_per_p") for line in self._latest.values()]
        known = [speed for speed in speeds if isinstance(speed, (int, float))]
        if known:
            parts.append(f"{sum(known) / len(known):.0f} tokens/s/p")
        step_time = slowest.get("step_time_s")
        if isinstance(step_time, (int, float)) and isinstance(steps, int):
            parts.append(f"{seconds((steps - step) * step_time)} left")
        silent = len(self._ranks) - len(self._latest)
        if silent:
            parts.append(f"{silent} of {len(self._ranks)} ranks have not reported a step")
        others = {phase for phase in self._phases.values() if phase not in ("train", "compile")}
        return " · ".join(parts + sorted(others & {"checkpoint", "eval"}))


def _counts(phases: Any) -> str:
    counts: Dict[str, int] = {}
    for phase in phases:
        counts[phase] = counts.get(phase, 0) + 1
    return ", ".join(f"{count} {phase}" for phase, count in counts.items()) or "starting"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "?"


@contextmanager
def steps_shown() -> Iterator[Callable[[str], None]]:
    """A progress callback for preparing steps: one live line, or a line a finished step."""
    screen = console(stderr=True)
    if screen.is_terminal:
        with screen.status("", spinner="line") as status:
            yield lambda text: status.update(printable(text))
        return
    pending: List[Tuple[str, str]] = []

    def plain(text: str) -> None:
        # In a pipe, say each step once, when its last host is done.
        doing, _, rest = text.partition(": ")
        done, _, total = rest.partition(" ")[0].partition("/")
        pending[:] = [(doing, text)]
        if done == total or "(" in rest:
            click.echo(printable(text), err=True)

    yield plain


@contextmanager
def bytes_shown(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback ``(bytes done, bytes in all)``: a bar with rate, or lines in a pipe."""
    if not sys.stderr.isatty():  # and rich, which takes a while to import, is not needed
        last = time.monotonic()

        def plain(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _PLAIN_EVERY_S:
                last = time.monotonic()
                click.echo(f"{doing}: {done >> 20} of {total >> 20} MiB", err=True)

        yield plain
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn(doing),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
