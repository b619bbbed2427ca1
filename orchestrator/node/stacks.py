"""``stacks``: where every rank of the run stands now, for a run in which nobody gets on.

A worker that opened ``stacks.log`` in its rank's folder and registered ``faulthandler`` for
SIGUSR1 with it is asked, and answers with the Python stacks of all its threads, even from within
a call that never returns. Nobody else is signalled: SIGUSR1 ends a process that does not expect
it. Of those the kernel tells the state and what each thread waits for.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

from . import journal, processes
from .folder import Json, RunFolder
from .processes import Process, Table

LOG = "stacks.log"
_ANSWER_S = 3.0
_SETTLED_S = 0.1
_POLL_S = 0.02
_MOST_BYTES = 64 * 1024
_MOST_THREADS = 64


class Asked(NamedTuple):
    """A worker that was signalled, and where in its ``stacks.log`` the answer begins."""

    process: Process
    path: str
    offset: int


def take(folder: RunFolder) -> Json:
    """The answer of the command: for each process of the run that is alive ``name``, ``rank``,
    ``pid``, ``source`` (``faulthandler`` or ``proc``) and ``text``."""
    table = processes.table()
    mains = _mains(folder)
    asked: Dict[str, Asked] = {}
    for name, event in mains.items():
        # All are asked before the first is read: they are to be compared.
        one = _ask(folder, name, _tree(event["pid"], table))
        if one is not None:
            asked[name] = one
    texts = _answers(asked)
    stacks: List[Json] = []
    for name, event in mains.items():
        text, source, pid = texts.get(name, ""), "faulthandler", event["pid"]
        if text:
            pid = asked[name].process.pid
        else:
            text, source = _kernel_view(_tree(event["pid"], table)), "proc"
        stacks.append(
            {"name": name, "rank": event["rank"], "pid": pid, "source": source, "text": text}
        )
    return {"stacks": stacks}


def _mains(folder: RunFolder) -> Dict[str, Json]:
    """``process_started`` of those that still run, by name."""
    started = {}
    for _, event in journal.read(folder.journal):
        if event["event"] == "process_started":
            started[event["name"]] = event
    return {
        name: event
        for name, event in started.items()
        if processes.is_alive(event["pid"], event["start_ticks"])
    }


def _tree(pid: int, table: Table) -> List[Process]:
    """The process and all below it, parents first."""
    found = [pid, *sorted(processes.descendants([pid], table))]
    return [table[one] for one in found if one in table]


def _ask(folder: RunFolder, name: str, tree: List[Process]) -> Optional[Asked]:
    path = os.path.join(folder.process(name), LOG)
    try:
        offset = os.stat(path).st_size
    except OSError:
        return None  # the worker does not offer it
    wanted = os.path.realpath(path)
    for process in tree:
        if process.state in "Tt":
            return None  # stopped: it would answer when it is continued
        # The first only: a child that it forked has the file and the handler from it.
        if wanted in processes.open_files(process.pid) and _catches(process.pid, signal.SIGUSR1):
            sent = processes.send(process, signal.SIGUSR1)
            return Asked(process, path, offset) if sent else None
    return None


def _catches(pid: int, signum: int) -> bool:
    """Whether the process has a handler for the signal (SigCgt of /proc/PID/status)."""
    try:
        with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    except (OSError, ValueError, IndexError):
        return False
    return False


def _answers(asked: Dict[str, Asked]) -> Dict[str, str]:
    """What each wrote, once it has stopped writing or the time is over."""
    sizes: Dict[str, Tuple[int, float]] = {}
    until = time.monotonic() + _ANSWER_S
    waiting = dict(asked)
    while waiting and time.monotonic() < until:
        now = time.monotonic()
        for name, one in list(waiting.items()):
            size = _size(one.path)
            known, since = sizes.setdefault(name, (size, now))
            if size != known:
                sizes[name] = (size, now)
            elif size > one.offset and now - since >= _SETTLED_S and not _works(one.process.pid):
                del waiting[name]
        time.sleep(_POLL_S)
    return {name: _read(one.path, one.offset) for name, one in asked.items()}


def _works(pid: int) -> bool:
    """Whether it runs, waits for a processor or for the disk: on a busy host it may be in the
    midst of its answer, however long it has written nothing."""
    process = processes.read(pid)
    return process is not None and process.state in "RD"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read(path: str, offset: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _kernel_view(tree: List[Process]) -> str:
    """A line for each thread, and under it its kernel stack where we may see it."""
    lines: List[str] = []
    for process in tree:
        folder = "/proc/%d/task" % process.pid
        try:
            threads = sorted(map(int, os.listdir(folder)))
        except OSError:  # ended in the meantime
            continue
        for thread in threads[:_MOST_THREADS]:
            lines += _thread("%s/%d" % (folder, thread), process, thread)
    return "\n".join(lines)


def _thread(folder: str, process: Process, thread: int) -> List[str]:
    try:
        with open(folder + "/stat", "rb") as file:
            seen = processes.parse_stat(file.read())
    except OSError:
        return []
    where = _text(folder + "/wchan").strip() or "?"
    line = "%s pid %d thread %d: state %s, waits in %s" % (
        seen.name,
        process.pid,
        thread,
        seen.state,
        "nothing" if where == "0" else where,
    )
    return [line] + ["  " + frame for frame in _text(folder + "/stack").splitlines()]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:  # only root may read some of them
        return ""
