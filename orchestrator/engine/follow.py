"""Follows a running job to its end: one stream a host, one queue, one pure watcher that decides.

Threads only carry: a reader a host copies the stream into the mirror and posts what it saw.
The loop in ``follow`` is the only place that decides (through ``watching.watcher``) and acts.
What the watcher saw is recorded, so that ``engine.replay`` comes to the same decisions.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from orchestrator.engine.reader import (
    Ended,
    HostRun,
    Lines,
    Observer,
    Post,
    Posts,
    Reader,
    Seen,
    Shown,
    rank_of,
)
from orchestrator.engine.recording import Recording
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import OrchError
from orchestrator.runs.clocks import clock_ahead
from orchestrator.runs.journal import Journal, last_events, read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import reducer, watcher
from orchestrator.watching.stacks import Stack
from orchestrator.watching.training import Place

_TICK_S = 0.5
_THOROUGH_S = 60.0
_STOOD_S = 2.0
"""A tick that is so late tells that this process stood still: it was stopped, or its disk did not
answer."""
_CLOSING_S = 5.0
"""How long is waited for the threads of readers in the end."""
_CATCH_UP_S = 5.0
"""Then so long is only listened: what came meanwhile is not taken in yet, and no host is silent."""


@dataclass(frozen=True)
class Ending:
    """How a run ended: ``succeeded``, ``failed`` or ``cancelled``, the first failure, and how far
    it came: the step that every rank has done, and that from which on they went."""

    outcome: str
    failure: Optional[reducer.Failure]
    first_step: Optional[int] = None
    last_step: Optional[int] = None
    given_up: Tuple[str, ...] = ()
    """Hosts that had not been heard of for too long: there it may go on."""

    @property
    def progressed(self) -> bool:
        """Whether every rank came further than its first step."""
        return (
            self.first_step is not None
            and self.last_step is not None
            and self.last_step > self.first_step
        )


def follow(
    paths: RunPaths,
    journal: Journal,
    hosts: Sequence[HostRun],
    observer: Observer,
    *,
    grace_s: float,
    rules: Optional[watcher.Rules] = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Follow until the run is over, stopping the other hosts when one fails.

    ``rules`` say when hosts are given up, ranks hang, are slow or diverge, and what is done then.
    May be called again for the same run after an interruption: everything seen before is in the
    mirrors, and the streams resume behind it. Raises Fenced when another controller has taken
    the run over.
    """
    loop = _Loop(paths, journal, observer, hosts, grace_s, clock)
    readers = [Reader(paths, host, loop.posts.put, logs=observer.wants_logs) for host in hosts]
    try:
        loop.begin(hosts, rules or watcher.Rules())
        for reader in readers:
            reader.start()
        while not loop.state.over:
            loop.turn()
        given_up = loop.ending().given_up
        for reader in readers:
            if reader.host not in given_up:
                reader.drain()
        loop.show_rest()
    finally:
        for reader in readers:
            reader.close()
        until = time.monotonic() + _CLOSING_S
        for reader in readers:
            reader.join(until - time.monotonic())
        loop.join()
    return loop.ending()


def in_order(
    backlog: Sequence[reducer.NodeEvent], decided: Sequence[Mapping[str, Any]]
) -> List[reducer.NodeEvent]:
    """What happened before this controller came, in the order of time.

    Where an earlier controller (its events: ``decided``) stopped the run because of a failure,
    failures come first: should a host's clock be further behind than is known, the stop that
    followed from one would seem to have come before it, as a request.
    """
    rules = {event.get("rule") for event in decided if _is_stop(event)}
    failed = bool(rules - {"stop-requested"})

    def key(item: reducer.NodeEvent) -> Tuple[bool, float]:
        event = item.event
        exited = event.get("event") == "process_exited"
        culprit = exited and not event.get("collateral") and event.get("code") != 0
        return not (failed and culprit), item.wall or 0.0

    return sorted(backlog, key=key)


def failure_record(failure: Optional[reducer.Failure]) -> Optional[Dict[str, Any]]:
    """The first failure as the journal and JSON output hold it."""
    if failure is None:
        return None
    return {**asdict(failure), "sentence": failure.sentence()}


def _is_stop(event: Mapping[str, Any]) -> bool:
    return event.get("event") == "decision" and event.get("action") == "stop"


class _Loop:
    """The state of the watcher, what it is fed with, and how its actions are carried out."""

    def __init__(
        self,
        paths: RunPaths,
        journal: Journal,
        observer: Observer,
        hosts: Sequence[HostRun],
        grace_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.posts: queue.SimpleQueue[Posts] = queue.SimpleQueue()
        self._paths = paths
        self._journal = journal
        self._observer = observer
        self._supervisors: Dict[str, Supervisor] = {host.name: host.supervisor for host in hosts}
        self._grace_s = grace_s
        self._clock = clock
        self._heard: Set[str] = set()
        self._lines: List[Tuple[int, Mapping[str, Any]]] = []
        self._tick_at = clock() + _TICK_S
        self._thorough_at = clock() + _THOROUGH_S
        self._catching_up = False
        self._finish: Optional[reducer.Finish] = None
        self._acts: List[Tuple[str, threading.Thread]] = []
        self._recording = Recording(paths)
        self.state: watcher.Watcher

    def begin(self, hosts: Sequence[HostRun], rules: watcher.Rules) -> None:
        """Take in what an earlier controller saw."""
        places = [
            Place(rank, host.name, slot)
            for host in hosts
            for slot, rank in enumerate(
                rank for rank in map(rank_of, host.processes) if rank is not None
            )
        ]
        now = self._clock()
        sizes = self._recording.begin([host.name for host in hosts], places, rules, now)
        earlier = [
            (rank, line)
            for rank, size in sizes.items()
            for line in last_events(self._paths.metrics(f"rank_{rank}"), end=size)
        ]
        self.state, actions = watcher.begin(
            [host.name for host in hosts], places, rules, now, earlier
        )
        self._act(actions)
        backlog = [
            reducer.NodeEvent(host.name, event, clock_ahead(self._paths, host.name) or 0.0)
            for host in hosts
            for event in read_events(self._paths.host_journal(host.name))
        ]
        for seen in in_order(backlog, self._journal.events()):
            self._reduce(seen)

    def turn(self) -> None:
        """Wait for the next thing, and do what it calls for. Signs of life and metrics are
        gathered and judged at the next tick."""
        now = self._clock()
        if now >= self._tick_at:
            self._catching_up = not self._catching_up and now >= self._tick_at + _STOOD_S
            if self._catching_up:
                self._tick_at = now + _CATCH_UP_S
            else:
                self._tick(now)
        try:
            posts = self.posts.get(timeout=max(0.01, self._tick_at - now))
        except queue.Empty:
            return
        for post in posts:
            self._take(post)

    def show_rest(self) -> None:
        while not self.posts.empty():
            for post in self.posts.get():
                if isinstance(post, (Shown, Lines)):
                    self._take(post)

    def ending(self) -> Ending:
        assert self._finish is not None
        ranks = self.state.last_steps
        first = self.state.first_steps.values()
        # A rank that never did a step has not come as far as the others.
        whole = ranks and len(ranks) == self._recording.ranks
        return Ending(
            self._finish.outcome,
            self._finish.failure,
            first_step=min(first) if first else None,
            last_step=min(ranks.values()) if whole else None,
            given_up=tuple(reducer.given_up(self.state.hosts)),
        )

    def join(self) -> None:
        """Wait until what was begun is done; but for nobody who is not heard of any more."""
        for host, act in self._acts:
            if host not in reducer.given_up(self.state.hosts):
                act.join()

    def _take(self, post: Post) -> None:
        if isinstance(post, Shown):
            post.show(self._observer)
        elif isinstance(post, Lines):
            rank = rank_of(post.process)
            for line in post.lines:
                if rank is not None:
                    self._lines.append((rank, line))
                self._observer.metrics(post.process, line)
        elif isinstance(post, Ended):
            raise post.error
        elif isinstance(post.event, reducer.Heard):
            self._heard.update(post.event.hosts)
        else:
            self._reduce(post.event)

    def _tick(self, now: float) -> None:
        self._tick_at = now + _TICK_S
        if self._heard:
            self._reduce(reducer.Heard(tuple(sorted(self._heard))))
            self._heard.clear()
        if self._lines:
            # By rank, as a replay finds them in the files.
            lines, self._lines = sorted(self._lines, key=lambda item: item[0]), []
            self._reduce(watcher.Metrics(tuple(lines)))
        thorough = now >= self._thorough_at
        if thorough:
            self._thorough_at = now + _THOROUGH_S
        self._reduce(reducer.Tick(thorough))

    def _reduce(self, event: watcher.Event) -> None:
        now = self._clock()
        before = self.state
        self.state, actions = watcher.reduce(before, event, now)
        if actions or self.state is not before:
            self._recording.add(event, now)
        self._act(actions)

    def _act(self, actions: Sequence[watcher.Action]) -> None:
        for action in actions:
            if isinstance(action, reducer.Decide):
                self._journal.append(
                    "decision",
                    action=action.action,
                    rule=action.rule,
                    evidence=dict(action.evidence),
                )
                self._observer.decision(action.sentence)
            elif isinstance(action, reducer.StopHost):
                self._do(self._stop, action.host, action.reason)
            elif isinstance(action, watcher.TakeStacks):
                self._do(self._take_stacks, action.host)
            else:
                self._finish = action

    def _do(self, act: Callable[..., None], host: str, *more: str) -> None:
        thread = threading.Thread(target=act, args=(host, *more), name=f"act-{host}", daemon=True)
        self._acts.append((host, thread))
        thread.start()

    # In threads of their own

    def _stop(self, host: str, reason: str) -> None:
        """A failure is journaled; the silence rule bounds the wait."""
        try:
            answer = self._supervisors[host].stop(reason, grace_s=self._grace_s)
            self._journal.append("stopped", host=host, certificate=answer)
        except OrchError as error:
            self._journal.append("stop-failed", host=host, error=str(error))

    def _take_stacks(self, host: str) -> None:
        """What was taken is kept beside the logs, whole."""
        found: List[Stack] = []
        try:
            for one in self._supervisors[host].stacks()["stacks"]:
                rank = one["rank"]
                if isinstance(rank, int):
                    text, source = str(one["text"]), str(one["source"])
                    found.append(Stack(rank, host, source, text))
                    path = self._paths.stacks(f"rank_{rank}")
                    path.parent.mkdir(exist_ok=True, mode=0o700)
                    path.write_text(text, encoding="utf-8", errors="replace")
        except (OrchError, OSError, KeyError, TypeError) as error:
            self._journal.append("stacks-failed", host=host, error=str(error))
        self.posts.put([Seen(watcher.StacksTaken(host, tuple(found)))])
