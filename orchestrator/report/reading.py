"""A run that is looked at again and again: each time only what was added is read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple

from orchestrator.runs.journal import last_events, parse_line
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.lease import holder
from orchestrator.runs.state import Event, RunState, merge_state
from orchestrator.watching.progress import RankProgress, number, observe
from orchestrator.watching.straggler import Straggler, find_stragglers

_FIRST_BYTES = 16384
"""Of metrics that were there before the first look, so much is read: some 60 steps."""
_KEPT = 60


@dataclass(frozen=True)
class Track:
    """The last steps of one rank, oldest first. ``latest`` holds the last value of every field
    that it ever reported; ``reported`` is when, by the clock of its host (Unix seconds)."""

    rank: int
    latest: Mapping[str, Any] = field(default_factory=dict)
    losses: Tuple[Optional[float], ...] = ()
    speeds: Tuple[float, ...] = ()
    reported: Optional[float] = None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, with the recent past of its ranks."""

    state: RunState
    tracks: Mapping[int, Track] = field(default_factory=dict)
    stragglers: Tuple[Straggler, ...] = ()
    events: Tuple[Event, ...] = ()
    """Of the controller's journal."""


class RunReader:
    """Reads one run. ``read`` costs little when little was added."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._journal = _Growing(paths.journal)
        self._events: List[Event] = []
        self._hosts: Dict[str, _Growing] = {}
        self._host_events: Dict[str, List[Event]] = {}
        self._ranks: Dict[str, _Rank] = {}

    def read(self) -> Snapshot:
        """The run as it is now; asks no host."""
        for event in self._journal.added():
            self._events.append(event)
            if event.get("event") == "launch":
                self._launched(event)
        for name, journal in self._hosts.items():
            self._host_events[name] += journal.added()
        for rank in self._ranks.values():
            rank.read()
        state = merge_state(
            self._paths.run_id,
            self._events,
            self._host_events,
            {name: self._beat(name) for name in self._hosts},
            {name: [rank.latest] for name, rank in self._ranks.items()},
            holder(self._paths.lock),
        )
        running = {rank.rank for rank in state.ranks if rank.status.value == "running"}
        progress = [
            rank.progress
            for rank in self._ranks.values()
            if rank.progress.rank in running or state.status.is_terminal
        ]
        return Snapshot(
            state=state,
            tracks={rank.progress.rank: rank.track() for rank in self._ranks.values()},
            stragglers=tuple(find_stragglers(progress)),
            events=tuple(self._events),
        )

    def _launched(self, event: Event) -> None:
        # A second one: the first was undone, and other hosts were chosen.
        self._hosts, self._host_events, self._ranks = {}, {}, {}
        for host in event["hosts"]:
            name = host["name"]
            self._hosts[name] = _Growing(self._paths.host_journal(name))
            self._host_events[name] = []
            ranks = [one for one in host["processes"] if one["rank"] is not None]
            for slot, process in enumerate(ranks):
                path = self._paths.metrics(process["name"])
                self._ranks[process["name"]] = _Rank(process["rank"], name, slot, path)

    def _beat(self, host: str) -> Optional[Event]:
        beats = last_events(self._paths.host_beat(host))
        return beats[-1] if beats else None


class _Growing:
    """A file of lines that only grows."""

    def __init__(self, path: Path, first: Optional[int] = None) -> None:
        self._path = path
        self._first = first
        self._offset = 0
        self._rest = b""

    def added(self) -> List[Dict[str, Any]]:
        """The whole lines that were added since the last call."""
        try:
            size = self._path.stat().st_size
            if size <= self._offset:
                return []
            with self._path.open("rb") as stream:
                if self._offset == 0 and self._first is not None and size > self._first:
                    stream.seek(size - self._first)
                    stream.readline()  # The end of a line whose beginning was passed over.
                else:
                    stream.seek(self._offset)
                data = stream.read()
                self._offset = stream.tell()
        except FileNotFoundError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [entry for entry in map(parse_line, lines) if entry is not None]


class _Rank:
    def __init__(self, rank: int, host: str, slot: int, path: Path) -> None:
        self._file = _Growing(path, _FIRST_BYTES)
        self.progress = RankProgress(rank, host, slot, moved=0.0)
        self.latest: Dict[str, Any] = {}
        self._losses: Deque[Optional[float]] = deque(maxlen=_KEPT)
        self._speeds: Deque[float] = deque(maxlen=_KEPT)

    def read(self) -> None:
        for line in self._file.added():
            self.progress = observe(self.progress, line, 0.0)
            self.latest.update(line)
            if "step" in line:
                self.latest.setdefault("phase", "train")
                self._losses.append(number(line.get("loss")))
                speed = number(line.get("tokens_per_s_per_p"))
                if speed is not None:
                    self._speeds.append(speed)

    def track(self) -> Track:
        return Track(
            self.progress.rank,
            dict(self.latest),
            tuple(self._losses),
            tuple(self._speeds),
            number(self.latest.get("wall")),
        )
