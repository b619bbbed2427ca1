"""Processes of this machine, from /proc, known by id and start time, never by id alone."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence


class DrillTimeout(Exception):
    """What a drill waited for did not come."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Return as soon as ``condition()`` holds. Raises DrillTimeout that names ``what``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DrillTimeout(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Process:
    """One process. ``started`` is in clock ticks since the machine's start."""

    pid: int
    parent: int
    started: int
    state: str
    name: str
    """Of the program, at most 15 characters."""

    @property
    def alive(self) -> bool:
        """Whether it still is this very process, and no zombie."""
        now = find(self.pid)
        return now is not None and now.started == self.started and now.state not in "ZX"

    def send(self, number: signal.Signals) -> None:
        """Signal it; one that is gone is no error."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def environment(self, name: str) -> Optional[str]:
        """The value of a variable that it was started with."""
        head = os.fsencode(name) + b"="
        for item in _read(self.pid, "environ").split(b"\0"):
            if item.startswith(head):
                return os.fsdecode(item[len(head) :])
        return None

    def command(self) -> str:
        return os.fsdecode(_read(self.pid, "cmdline").rstrip(b"\0").replace(b"\0", b" "))


def find(pid: int) -> Optional[Process]:
    """The process with this id now."""
    text = _read(pid, "stat").decode("utf-8", "replace")
    begin, end = text.find("("), text.rfind(")")
    if end < 0:
        return None
    fields = text[end + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[19]), fields[0], text[begin + 1 : end])


def every() -> Iterator[Process]:
    """All processes that live now."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            found = find(int(entry))
            if found is not None and found.state not in "ZX":
                yield found


def having(name: str, value: str) -> List[Process]:
    """Processes that were started with this variable and value."""
    return [one for one in every() if one.environment(name) == value]


def descendants(pid: int) -> List[Process]:
    """Children of a process, their children and so on."""
    known = list(every())
    found: List[Process] = []
    front = {pid}
    while front:
        next_ones = [one for one in known if one.parent in front]
        found += next_ones
        front = {one.pid for one in next_ones}
    return found


def end(processes: Sequence[Process]) -> None:
    """Kill them and wait for their end. Raises DrillTimeout."""
    for process in processes:
        process.send(signal.SIGKILL)
    wait_until(
        lambda: not any(process.alive for process in processes),
        f"the end of {', '.join(str(process.pid) for process in processes)}",
    )


def _read(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""
