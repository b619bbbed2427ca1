"""The metrics of all ranks as curves of a bounded number of points.

Steps fall into buckets. A bucket of a rank is its mean; the band over all ranks keeps the lowest
and the highest value of every bucket and whose they were, so that no peak is lost by thinning.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.runs.journal import parse_line
from orchestrator.watching.progress import number

MOST_READ = 6_000
"""Lines that are understood of one rank; of longer files every so-manieth step is."""
_BUCKETS = 400
_POINTS = 60_000
_LEAST_POINTS = 60
_CHUNK = 1 << 18
_ALWAYS = re.compile(rb'"phase"|"result"|true|NaN|Infinity|null')
"""Lines that are read in any case: phases, results, overflows, losses that are no number."""

FIELDS = {"loss": "loss", "speed": "tokens_per_s_per_p", "lr": "lr", "time": "step_time_s"}


@dataclass(frozen=True)
class Phase:
    """A phase of a rank, from ``start`` to ``end`` (Unix seconds of its host)."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class RankHistory:
    """What one rank reported: equally long columns by the names of ``FIELDS``, and ``step``.

    A value that was no number is None; ``bad_steps`` are those whose loss was none,
    ``overflows`` those that overflowed. ``stride``: every so-manieth step was read.
    ``restarts``: steps from which the rank went on again after it had been further.
    """

    rank: int
    steps: Tuple[int, ...] = ()
    columns: Mapping[str, Tuple[Optional[float], ...]] = field(default_factory=dict)
    phases: Tuple[Phase, ...] = ()
    saves: Tuple[int, ...] = ()
    """Steps after which it wrote checkpoints."""
    bad_steps: Tuple[int, ...] = ()
    overflows: Tuple[int, ...] = ()
    restarts: Tuple[int, ...] = ()
    goal: Optional[int] = None
    stride: int = 1
    result: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class Band:
    """All ranks bucket by bucket: ``steps`` is the last step of each bucket."""

    steps: Tuple[int, ...]
    middle: Tuple[Optional[float], ...]
    low: Tuple[Optional[float], ...]
    high: Tuple[Optional[float], ...]
    low_rank: Tuple[Optional[int], ...]
    high_rank: Tuple[Optional[int], ...]


@dataclass(frozen=True)
class Curves:
    """One metric of all ranks: the band, and a line for each rank on its own, coarser grid."""

    band: Band
    line_steps: Tuple[int, ...]
    lines: Mapping[int, Tuple[Optional[float], ...]]


def read_history(rank: int, path: Path, *, most: int = MOST_READ) -> RankHistory:
    """The metrics of one rank from its file; an absent one is a rank that reported nothing."""
    reading = _Reading(rank)
    stride = _stride(path, most)
    for entry in _entries(path, stride):
        reading.take(entry)
    return reading.history(stride)


def curves(histories: Sequence[RankHistory], name: str) -> Optional[Curves]:
    """One of ``FIELDS`` of all ranks; None when no rank has a value. Pure."""
    last = max((history.steps[-1] for history in histories if history.steps), default=0)
    if last < 1:
        return None
    count = min(_BUCKETS, last)
    with_data = sum(bool(history.steps) for history in histories)
    points = max(min(_LEAST_POINTS, count), min(count, _POINTS // max(1, with_data)))
    cells: List[List[Tuple[float, float, float, int]]] = [[] for _ in range(count)]
    lines: Dict[int, Tuple[Optional[float], ...]] = {}
    for history in histories:
        fine = _buckets(history, name, last, count)
        for place, values in enumerate(fine):
            if values:
                mean = math.fsum(values) / len(values)
                cells[place].append((mean, min(values), max(values), history.rank))
        coarse = fine if points == count else _buckets(history, name, last, points)
        line = tuple(math.fsum(one) / len(one) if one else None for one in coarse)
        if any(value is not None for value in line):
            lines[history.rank] = line
    if not lines:
        return None
    lows = [min(cell, key=lambda one: one[1]) if cell else None for cell in cells]
    highs = [max(cell, key=lambda one: one[2]) if cell else None for cell in cells]
    band = Band(
        steps=_ends(last, count),
        middle=tuple(median(one[0] for one in cell) if cell else None for cell in cells),
        low=tuple(None if one is None else one[1] for one in lows),
        high=tuple(None if one is None else one[2] for one in highs),
        low_rank=tuple(None if one is None else one[3] for one in lows),
        high_rank=tuple(None if one is None else one[3] for one in highs),
    )
    return Curves(band, _ends(last, points), lines)


def typical(history: RankHistory, name: str) -> Optional[float]:
    """The median of a field of one rank; its first steps, which warm up, are left out."""
    values = [value for value in history.columns.get(name, ()) if value is not None]
    values = values[min(5, len(values) // 2) :]
    return median(values) if values else None


class _Reading:
    """Takes the lines of one rank in, one after the other."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._steps: List[int] = []
        self._columns: Dict[str, List[Optional[float]]] = {name: [] for name in FIELDS}
        self._phases: List[Phase] = []
        self._phase: Optional[Tuple[str, float]] = None
        self._wall: Optional[float] = None
        self._marks: Dict[str, List[int]] = {"save": [], "bad": [], "overflow": [], "restart": []}
        self._goal: Optional[int] = None
        self._result: Optional[Mapping[str, Any]] = None

    def take(self, entry: Mapping[str, Any]) -> None:
        wall = number(entry.get("wall"))
        phase, step = entry.get("phase"), entry.get("step")
        if isinstance(phase, str) and wall is not None:
            self._end_phase(wall)
            self._phase = (phase, wall)
            if phase == "checkpoint" and self._steps:
                self._marks["save"].append(self._steps[-1])
        if isinstance(step, int) and not isinstance(step, bool) and 0 < step < 1 << 53:
            self._step(step, entry)
        if isinstance(entry.get("result"), dict):
            self._result = entry["result"]
        self._wall = wall if wall is not None else self._wall

    def history(self, stride: int) -> RankHistory:
        if self._wall is not None:
            self._end_phase(self._wall)
        marks = {name: tuple(sorted(set(steps))) for name, steps in self._marks.items()}
        return RankHistory(
            rank=self._rank,
            steps=tuple(self._steps),
            columns={name: tuple(values) for name, values in self._columns.items()},
            phases=tuple(phase for phase in self._phases if phase.name != "done"),
            saves=marks["save"],
            bad_steps=marks["bad"],
            overflows=marks["overflow"],
            restarts=marks["restart"],
            goal=self._goal,
            stride=stride,
            result=self._result,
        )

    def _step(self, step: int, entry: Mapping[str, Any]) -> None:
        if self._steps and step <= self._steps[-1]:
            # It went on from a checkpoint: what came after that was done again.
            self._marks["restart"].append(step)
            while self._steps and self._steps[-1] >= step:
                self._steps.pop()
                for column in self._columns.values():
                    column.pop()
        self._steps.append(step)
        for name, key in FIELDS.items():
            self._columns[name].append(number(entry.get(key)))
        overflow = entry.get("overflow") is True
        if overflow:
            self._marks["overflow"].append(step)
        elif "loss" in entry and self._columns["loss"][-1] is None:
            self._marks["bad"].append(step)
        if isinstance(entry.get("steps"), int):
            self._goal = entry["steps"]

    def _end_phase(self, wall: float) -> None:
        if self._phase is not None:
            name, start = self._phase
            self._phases.append(Phase(name, start, max(start, wall)))


def _stride(path: Path, most: int) -> int:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(65536)
    except FileNotFoundError:
        return 1
    lines = head.count(b"\n")
    return max(1, math.ceil(size * lines / len(head) / most)) if lines else 1


def _entries(path: Path, stride: int) -> Iterator[Dict[str, Any]]:
    for line in _chosen(path, stride):
        entry = parse_line(line)
        if entry is not None:
            yield entry


def _chosen(path: Path, stride: int) -> Iterator[bytes]:
    """Every ``stride``-th line, and those that are read in any case."""
    place, rest = 0, b""
    try:
        with path.open("rb") as stream:
            while True:
                data = stream.read(_CHUNK)
                if not data:
                    break
                data = rest + data
                *lines, rest = data.split(b"\n")
                first = -place % stride
                # Most pieces of a long file hold nothing but steps: one search for all of them.
                if stride == 1 or _ALWAYS.search(data) is None:
                    yield from lines[first::stride]
                else:
                    for number, line in enumerate(lines):
                        if number % stride == first or _ALWAYS.search(line):
                            yield line
                place += len(lines)
    except FileNotFoundError:
        return
    yield rest


def _buckets(history: RankHistory, name: str, last: int, count: int) -> List[List[float]]:
    buckets: List[List[float]] = [[] for _ in range(count)]
    for step, value in zip(history.steps, history.columns.get(name, ())):
        if value is not None:
            buckets[min(count - 1, (step - 1) * count // last)].append(value)
    return buckets


def _ends(last: int, count: int) -> Tuple[int, ...]:
    """The last step of each bucket: the greatest ``s`` with ``(s - 1) * count // last`` = its
    place."""
    return tuple(((place + 1) * last - 1) // count + 1 for place in range(count))


def rounded(values: Iterable[Optional[float]], digits: int = 4) -> List[Optional[float]]:
    """Values with so many significant digits: what a chart can show, in few characters."""
    return [None if value is None else float(f"{value:.{digits}g}") for value in values]
