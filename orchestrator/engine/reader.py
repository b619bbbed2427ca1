"""Reads the stream of one host in a thread: copies it into the mirror and posts what it saw."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Tuple, Union

from orchestrator.engine.mirror import Mirror
from orchestrator.engine.supervisor import FrameStream, Supervisor
from orchestrator.errors import Fenced, OrchError, TransportError
from orchestrator.runs.clocks import HostClock
from orchestrator.runs.journal import parse_line
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import reducer, watcher

_RECONNECT_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_QUIET_S = 5.0
"""A stream of an ended run from which nothing comes for so long is not waited for."""


class Observer(Protocol):
    """What a person or program sees of a run as it goes. Called from one thread."""

    wants_logs: bool
    """Whether ``log`` is to be called at all."""

    def host_event(self, host: str, event: Mapping[str, Any]) -> None: ...

    def metrics(self, process: str, line: Mapping[str, Any]) -> None: ...

    def log(self, process: str, data: bytes) -> None: ...

    def decision(self, sentence: str) -> None: ...

    def connection(self, host: str, problem: Optional[str]) -> None:
        """The stream of a host was cut (``problem``) or is back (None)."""
        ...


@dataclass(frozen=True)
class HostRun:
    """A host of the run: its supervisor and the names of its processes."""

    supervisor: Supervisor
    processes: Tuple[str, ...]

    @property
    def name(self) -> str:
        return self.supervisor.host


@dataclass(frozen=True)
class Seen:
    """Something for the watcher."""

    event: watcher.Event


@dataclass(frozen=True)
class Lines:
    """Whole lines of metrics of one process."""

    process: str
    lines: Tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Shown:
    """Something only to be shown."""

    show: Callable[[Observer], None]


@dataclass(frozen=True)
class Ended:
    """Whoever follows must end with this error."""

    error: OrchError


Post = Union[Seen, Lines, Shown, Ended]
Posts = List[Post]
"""What came at once. They go together: to wake who takes them costs more than most of them."""


def rank_of(process: str) -> Optional[int]:
    """The rank of a process by its name; None for a service."""
    match = re.fullmatch(r"rank_(\d{1,9})", process)
    return int(match.group(1)) if match else None


class Reader:
    """Copies one host's stream into the mirror, reconnecting until the run has ended there."""

    def __init__(
        self, paths: RunPaths, host: HostRun, send: Callable[[Posts], None], *, logs: bool
    ) -> None:
        self._host = host
        self._mirror = Mirror(paths, host.name)
        self._clock = HostClock(paths, host.name)
        self._send = send
        self._posts: Posts = []
        self._logs = logs
        self._closing = threading.Event()
        self._stream: Optional[FrameStream] = None
        self._partial: Dict[str, bytes] = {}
        self._cut = False
        self._frames = 0
        self._thread = threading.Thread(target=self._run, name=f"follow-{host.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def host(self) -> str:
        return self._host.name

    def drain(self) -> None:
        """Wait for the stream's end frame, so that the mirrors are whole; for as long as
        something comes."""
        frames = -1
        while self._thread.is_alive() and frames != self._frames:
            frames = self._frames
            self._thread.join(_QUIET_S)

    def close(self) -> None:
        """Read no further."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def join(self, timeout: float) -> None:
        """Wait for the end of a closed reader. One without a connection has nothing to end."""
        if self._thread.ident is not None and not self._cut:
            self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            self._mirror.close()

    def _follow(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            try:
                if self._read_stream():
                    return
                problem = "the stream ended early"
            except TransportError as error:
                problem = str(error)
            except Fenced as error:
                self._post(Ended(error))
                self._flush()
                return
            except OSError as error:
                # Our own disk, not the host: the job must not be ended as silent for that.
                problem = f"cannot keep what it sends: {error}"
                self._post(Seen(reducer.Heard((self._host.name,))))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problem = f"it sent a frame that makes no sense ({error!r})"
            if self._closing.is_set():
                return
            # After a stream that came up the pauses are short again.
            attempt = attempt + 1 if self._cut else 0
            self._cut = True
            self._tell_connection(problem)
            self._closing.wait(_RECONNECT_S[min(attempt, len(_RECONNECT_S) - 1)])

    def _read_stream(self) -> bool:
        """Read one stream; True when it came to the run's end."""
        offsets = self._mirror.offsets(list(self._host.processes))
        self._stream = self._host.supervisor.frames(self._mirror.journal_offset(), offsets)
        if self._closing.is_set():
            self._stream.close()
            return False
        for frames in self._stream:
            self._frames += len(frames)
            if self._cut and frames:
                self._cut = False
                self._tell_connection(None)
            try:
                if any(self._handle(frame) for frame in frames):
                    return True
            finally:
                self._flush()
        return False

    def _handle(self, frame: Mapping[str, Any]) -> bool:
        name, kind = self._host.name, frame.get("t")
        if kind == "data":
            self._data(frame["file"], frame["off"], frame["data"])
        elif kind == "event":
            event = frame["event"]
            self._mirror.append_event(frame["off"], event)
            self._post(Seen(reducer.NodeEvent(name, event, self._clock.ahead)))
            self._post(Shown(lambda seen: seen.host_event(name, event)))
        elif kind == "beat":
            self._clock.beat(frame["wall"], time.time())
            self._post(Seen(reducer.Heard((name,))))
        elif kind == "lost":
            self._post(Seen(reducer.SupervisorLost(name)))
        elif kind == "fenced":
            raise Fenced(
                f"another controller has taken over the run: {frame['owner'] or 'unknown'}",
                hint="follow it there; this one has ended without touching the run",
                host=name,
            )
        elif "error" in frame:
            self._refused(frame["error"])
        return kind == "end"

    def _refused(self, error: Mapping[str, Any]) -> None:
        if error["code"] == Fenced.code:
            raise Fenced(str(error["message"]), hint=str(error["hint"]), host=self._host.name)
        raise ValueError(str(error["message"]))

    def _data(self, file: str, offset: int, text: str) -> None:
        process = file.split("/")[1] if file.count("/") == 2 else ""
        if process not in self._host.processes:
            # No host writes into the logs of another one's ranks.
            raise TransportError(f"{self._host.name} sent {file!r}, no file of its processes")
        data = text.encode("utf-8", "surrogateescape")
        fresh = self._mirror.append_data(file, offset, data)
        if file.endswith("/metrics.jsonl"):
            lines = self._whole_lines(file, fresh)
            if lines:
                self._post(Lines(process, tuple(lines)))
        elif self._logs and fresh:
            self._post(Shown(lambda seen: seen.log(process, fresh)))

    def _whole_lines(self, file: str, data: bytes) -> List[Mapping[str, Any]]:
        *lines, self._partial[file] = (self._partial.get(file, b"") + data).split(b"\n")
        return [entry for entry in map(parse_line, lines) if entry is not None]

    def _post(self, post: Post) -> None:
        self._posts.append(post)

    def _flush(self) -> None:
        if self._posts:
            self._send(self._posts)
            self._posts = []

    def _tell_connection(self, problem: Optional[str]) -> None:
        self._post(Shown(lambda seen: seen.connection(self._host.name, problem)))
        self._flush()
