"""Follows a running job to its end: one stream a host, one queue, one pure reducer that decides.

Threads only carry: a reader a host copies the stream into the mirror and posts what it saw.
The loop in ``follow`` is the only place that decides (through ``watching.reducer``) and acts.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from orchestrator.engine.mirror import Mirror
from orchestrator.engine.pace import Pace, rank_of
from orchestrator.engine.supervisor import FrameStream, Supervisor
from orchestrator.errors import OrchError, TransportError
from orchestrator.runs.journal import Journal, parse_line, read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import reducer, training

_TICK_S = 0.5
_RECONNECT_S = (0.5, 1.0, 2.0, 4.0, 8.0)


class Observer(Protocol):
    """What a person or program sees of a run as it goes. Called from one thread."""

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
class Ending:
    """How a run ended: ``succeeded``, ``failed`` or ``cancelled``, and the first failure."""

    outcome: str
    failure: Optional[reducer.Failure]


def follow(
    paths: RunPaths,
    journal: Journal,
    hosts: Sequence[HostRun],
    observer: Observer,
    *,
    grace_s: float,
    silence_s: float = 60.0,
    limits: Optional[training.TrainingLimits] = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Follow until the run is over, stopping the other hosts when one fails.

    ``limits`` say when ranks hang, are slow or diverge: a hang stops the run, the rest is told.
    May be called again for the same run after an interruption: everything seen before is in the
    mirrors, and the streams resume behind it.
    """
    posts: queue.SimpleQueue[_Post] = queue.SimpleQueue()
    readers = [_Reader(paths, host, posts.put) for host in hosts]
    supervisors = {host.name: host.supervisor for host in hosts}
    state = reducer.begin(list(supervisors), clock(), silence_s=silence_s)
    backlog = [
        reducer.NodeEvent(host.name, event)
        for host in hosts
        for event in read_events(paths.host_journal(host.name))
    ]
    backlog = in_order(backlog, journal.events())
    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as workers:
        places = {host.name: host.processes for host in hosts}
        pace = Pace(paths, places, limits or training.TrainingLimits(), clock)
        loop = _Loop(journal, observer, supervisors, workers, grace_s, pace)
        try:
            for seen in backlog:
                pace.event(seen)
                state, actions = reducer.reduce(state, seen, clock())
                loop.act(actions)
            for reader in readers:
                reader.start()
            while not state.over:
                event = loop.next_event(posts)
                if event is None:
                    continue
                state, actions = reducer.reduce(state, event, clock())
                loop.act(actions)
            for reader in readers:
                reader.drain(5.0)
            loop.show_rest(posts)
        finally:
            for reader in readers:
                reader.close()
    assert loop.ending is not None
    return loop.ending


def in_order(
    backlog: Sequence[reducer.NodeEvent], decided: Sequence[Mapping[str, Any]]
) -> List[reducer.NodeEvent]:
    """What happened before this controller came, by the hosts' clocks.

    Where an earlier controller (its events: ``decided``) stopped the run because of a failure,
    failures come first: on a host whose clock is behind, the stop that followed from one would
    seem to have come before it, as a request.
    """
    rules = {event.get("rule") for event in decided if event.get("event") == "decision"}
    failed = bool(rules - {"stop-requested"})

    def key(item: reducer.NodeEvent) -> Tuple[bool, float]:
        event = item.event
        exited = event.get("event") == "process_exited"
        culprit = exited and not event.get("collateral") and event.get("code") != 0
        return not (failed and culprit), float(event.get("wall", 0))

    return sorted(backlog, key=key)


@dataclass(frozen=True)
class _Post:
    """Something a reader saw: an event for the reducer, metrics of a rank, or something only to
    be shown."""

    event: Optional[reducer.WatchEvent] = None
    show: Optional[Callable[[Observer], None]] = None
    metrics: Sequence[Tuple[int, Mapping[str, Any]]] = ()


class _Loop:
    def __init__(
        self,
        journal: Journal,
        observer: Observer,
        supervisors: Mapping[str, Supervisor],
        workers: ThreadPoolExecutor,
        grace_s: float,
        pace: Pace,
    ) -> None:
        self._journal = journal
        self._pace = pace
        self._observer = observer
        self._supervisors = supervisors
        self._workers = workers
        self._grace_s = grace_s
        self._last_tick = time.monotonic()
        self.ending: Optional[Ending] = None

    def next_event(self, posts: queue.SimpleQueue[_Post]) -> Optional[reducer.WatchEvent]:
        """The next thing to reduce; ticks come in between even when hosts are busy talking."""
        if time.monotonic() - self._last_tick >= _TICK_S:
            self._last_tick = time.monotonic()
            standstill, decisions = self._pace.tick()
            self._tell(decisions)
            return standstill or reducer.Tick()
        try:
            post = posts.get(timeout=_TICK_S)
        except queue.Empty:
            return None
        if post.show is not None:
            post.show(self._observer)
        if post.metrics:
            self._tell(self._pace.metrics(post.metrics))
        if post.event is not None:
            self._pace.event(post.event)
        return post.event

    def show_rest(self, posts: queue.SimpleQueue[_Post]) -> None:
        while not posts.empty():
            post = posts.get()
            if post.show is not None:
                post.show(self._observer)

    def _tell(self, decisions: Sequence[reducer.Decide]) -> None:
        """Decisions after which the run goes on."""
        for one in decisions:
            evidence = dict(one.evidence)
            self._journal.append("decision", action="tell", rule=one.rule, evidence=evidence)
            self._observer.decision(training.sentence(one))

    def act(self, actions: List[reducer.Action]) -> None:
        for action in actions:
            if isinstance(action, reducer.Decide):
                self._journal.append(
                    "decision", action="stop", rule=action.rule, evidence=dict(action.evidence)
                )
                self._observer.decision(f"stopping the run: rule {action.rule}")
            elif isinstance(action, reducer.StopHost):
                self._workers.submit(self._stop, action.host, action.reason)
            else:
                self.ending = Ending(action.outcome, action.failure)

    def _stop(self, host: str, reason: str) -> None:
        """Runs in a worker thread. A failure is journaled; the silence rule bounds the wait."""
        try:
            answer = self._supervisors[host].stop(reason, grace_s=self._grace_s)
            self._journal.append("stopped", host=host, certificate=answer)
        except OrchError as error:
            self._journal.append("stop-failed", host=host, error=str(error))


class _Reader:
    """Copies one host's stream into the mirror, reconnecting until the run has ended there."""

    def __init__(self, paths: RunPaths, host: HostRun, post: Callable[[_Post], None]) -> None:
        self._host = host
        self._mirror = Mirror(paths, host.name)
        self._post = post
        self._closing = threading.Event()
        self._stream: Optional[FrameStream] = None
        self._partial: Dict[str, bytes] = {}
        self._thread = threading.Thread(target=self._run, name=f"follow-{host.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self, timeout: float) -> None:
        """Wait for the stream's end frame, so that the mirrors are whole."""
        self._thread.join(timeout)

    def close(self) -> None:
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            try:
                if self._read_stream():
                    return
                problem = "the stream ended early"
            except TransportError as error:
                problem = str(error)
            except OSError as error:
                # Our own disk, not the host: the job must not be ended as silent for that.
                problem = f"cannot keep what it sends: {error}"
                self._post(_Post(reducer.Heard(self._host.name)))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problem = f"it sent a frame that makes no sense ({error!r})"
            if self._closing.is_set():
                return
            self._show(lambda seen, text=problem: seen.connection(self._host.name, text))  # type: ignore[misc]
            self._closing.wait(_RECONNECT_S[min(attempt, len(_RECONNECT_S) - 1)])
            attempt += 1

    def _read_stream(self) -> bool:
        """Read one stream; True when it came to the run's end."""
        offsets = self._mirror.offsets(list(self._host.processes))
        self._stream = self._host.supervisor.frames(self._mirror.journal_offset(), offsets)
        return any(self._handle(frame) for frame in self._stream)

    def _handle(self, frame: Mapping[str, Any]) -> bool:
        name, kind = self._host.name, frame.get("t")
        if kind == "data":
            self._data(frame["file"], frame["off"], frame["data"])
        elif kind == "event":
            event = frame["event"]
            self._mirror.append_event(frame["off"], event)
            self._post(
                _Post(reducer.NodeEvent(name, event), lambda seen: seen.host_event(name, event))
            )
        elif kind == "beat":
            self._mirror.beat(frame["wall"], time.time())
            self._post(_Post(reducer.Heard(name)))
        elif kind == "lost":
            self._post(_Post(reducer.SupervisorLost(name)))
        return kind == "end"

    def _data(self, file: str, offset: int, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        self._mirror.append_data(file, offset, data)
        process = file.split("/")[1]
        if file.endswith("/metrics.jsonl"):
            *lines, self._partial[file] = (self._partial.get(file, b"") + data).split(b"\n")
            entries = list(filter(None, map(parse_line, lines)))
            rank = rank_of(process)
            if rank is not None and entries:
                self._post(_Post(metrics=[(rank, entry) for entry in entries]))
            for entry in entries:
                self._show(lambda seen, line=entry: seen.metrics(process, line))  # type: ignore[misc]
        else:
            self._show(lambda seen: seen.log(process, data))

    def _show(self, show: Callable[[Observer], None]) -> None:
        self._post(_Post(show=show))


def failure_record(failure: Optional[reducer.Failure]) -> Optional[Dict[str, Any]]:
    """The first failure as the journal and JSON output hold it."""
    if failure is None:
        return None
    return {**asdict(failure), "sentence": failure.sentence()}
