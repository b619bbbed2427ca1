"""``stream``: everything new of a run, as frames on one channel, resumable at byte offsets.

A poll every 100 ms of a few file sizes costs next to nothing, works on every file system and
needs nothing but the standard library. Memory is bounded: at most CHUNK bytes of one file at a
time, and files take turns.
"""

from __future__ import annotations

import os
import select
import stat
import time

from . import fence, journal, processes, snapshot
from .failure import NodeError
from .folder import Json, RunFolder, read_json
from .light import dumps
from .spec import Spec, load

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Optional

POLL_S = 0.1
CHUNK = 256 * 1024


class ReaderGone(Exception):
    """Nobody reads us any more."""


def stream(
    folder: RunFolder,
    journal_offset: int,
    offsets: Dict[str, int],
    caller: Optional[fence.Caller] = None,
) -> None:
    """Write frames to standard output until the run has ended and all is sent, until another
    controller has taken over from ``caller``, or until the reader is gone: standard output
    closed, or standard input, when it is a pipe, at its end.

    Raises NodeError: ``spec``, or ``usage`` for an offset of a file that the run does not have.
    """
    spec = load(folder.spec)
    files = file_names(spec)
    for name in offsets:
        if name not in files:
            raise NodeError("usage", f"--offsets: {name!r} is no file of this run")
    if not os.path.exists(folder.journal):
        raise NodeError("host-not-ready", f"no run was armed in {folder.path}", "arm it first")
    tails = [Tail(folder.path, name, offsets.get(name, 0)) for name in files]
    output = Output()
    try:
        for frame in frames(folder, spec, journal_offset, tails, output, caller):
            output.write(dumps(frame))
    except ReaderGone:
        return


def file_names(spec: Spec) -> List[str]:
    """Files that are followed, relative to the run folder, in the order they take turns."""
    return [
        f"ranks/{process.name}/{kind}"
        for process in spec.processes
        for kind in ("stdout.log", "metrics.jsonl")
    ]


class Tail:
    """One growing file, from ``offset`` on. It need not exist yet."""

    def __init__(self, folder: str, name: str, offset: int) -> None:
        self.name = name
        self.offset = offset
        self._path = os.path.join(folder, name)
        self._descriptor: Optional[int] = None

    def read(self) -> bytes:
        """What is new, at most CHUNK bytes."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return b""
        data = os.pread(self._descriptor, CHUNK, self.offset)
        self.offset += len(data)
        return data


class Output:
    """Standard output without ever waiting for ever: a reader that has gone is noticed."""

    def __init__(self, output: int = 1, control: int = 0) -> None:
        self._output = output
        self._poll = select.poll()
        self._control: Optional[int] = None
        if _is_channel(output):
            os.set_blocking(output, False)
        # A terminal or /dev/null says nothing about our reader; the end of a pipe does.
        if _is_channel(control):
            self._control = control
            self._poll.register(control, select.POLLIN)
        self._poll.register(output, 0)

    def wait(self, seconds: float) -> None:
        """Pause; raises ReaderGone as soon as there is nobody to pause for."""
        until = time.monotonic() + seconds
        while True:
            self._look(max(0.0, until - time.monotonic()))
            if time.monotonic() >= until:
                return

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._output, view) :]
            except BlockingIOError:
                self._poll.modify(self._output, select.POLLOUT)
                self._look(None)
                self._poll.modify(self._output, 0)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise ReaderGone from error

    def _look(self, seconds: Optional[float]) -> None:
        for descriptor, events in self._poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == self._output and events & (select.POLLERR | select.POLLHUP):
                raise ReaderGone
            if descriptor == self._control and not _drain(descriptor):
                raise ReaderGone


def frames(
    folder: RunFolder,
    spec: Spec,
    journal_offset: int,
    tails: List[Tail],
    output: Output,
    caller: Optional[fence.Caller] = None,
) -> Iterator[Json]:
    """All frames in order. Events come before the bytes written at the same time."""
    supervisor = snapshot.supervisor_identity(folder)
    known = 0
    beat_at = 0.0
    ended = lost = False
    while True:
        other = fence.successor(folder, caller)
        if other is not None:
            yield {"t": "fenced", **other}
            return
        if not ended:
            alive = supervisor is not None and processes.is_alive(
                supervisor.pid, supervisor.start_ticks
            )
            for end, event in journal.read(folder.journal, known):
                known = end
                ended = ended or event["event"] == "finished"
                if end > journal_offset:
                    yield {"t": "event", "off": end, "event": event}
            # Dead before we read, and no last event: it was killed.
            lost = not alive and not ended
            ended = ended or lost
        more = False
        for tail in tails:
            start = tail.offset
            data = tail.read()
            if data:
                more = more or len(data) == CHUNK
                yield {"t": "data", "file": tail.name, "off": start, "data": _text(data)}
        now = time.monotonic()
        if now >= beat_at:
            beat_at = now + spec.heartbeat_s
            beat = read_json(folder.heartbeat)
            yield {"t": "beat", "wall": time.time(), "mono": now, "supervisor": beat}
        if ended and not more:
            break
        output.wait(0.0 if more else POLL_S)
    if lost:
        yield {"t": "lost"}
    yield {"t": "end"}


def _text(data: bytes) -> str:
    """Bytes as text from which ``encode("utf-8", "surrogateescape")`` makes the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def _is_channel(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _drain(descriptor: int) -> bool:
    """Throw away what is sent to us; False at end of file."""
    return bool(os.read(descriptor, 4096))
