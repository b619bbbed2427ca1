"""How far each rank is, learned from the lines of its ``metrics.jsonl``. Pure."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Mapping, NamedTuple, Optional, Tuple

KEPT = 32
"""Step times that are remembered of a rank."""


# No dataclass: one is made for each line of metrics, and this takes a fifth of the time.
class RankProgress(NamedTuple):
    """One rank: where it is, and what its steps took so far (seconds).

    ``moved`` is when it was last seen to get on, in the watcher's monotonic seconds. ``phase`` is
    that of the worker (startup, compile, train, checkpoint, eval, done). Durations are measured
    by the rank's own clock, so that a cut connection does not look like a slow step.
    """

    rank: int
    host: str
    slot: int
    """Place of the rank's device on its host, from 0."""
    moved: float
    heard: bool = False
    phase: str = "startup"
    step: Optional[int] = None
    earlier_times: Tuple[float, ...] = ()
    times: Tuple[float, ...] = ()
    """What its steps took. When there are enough of the latter they become the former: a copy of
    all of them for each step would be most of the work."""
    longest: Mapping[str, float] = MappingProxyType({})
    """The longest that it spent in each phase and came out of; ``step`` for one step."""
    phase_wall: Optional[float] = None
    step_wall: Optional[float] = None

    @property
    def step_times(self) -> Tuple[float, ...]:
        """Of its last steps, at most ``KEPT``."""
        return (self.earlier_times + self.times)[-KEPT:]

    @property
    def step_time(self) -> Optional[float]:
        """Median of its last steps."""
        times = sorted(self.step_times)
        return (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2 if times else None

    @property
    def stage(self) -> str:
        """Its phase, with ``train`` told apart: ``first step`` or ``step``."""
        if self.phase != "train":
            return self.phase
        return "first step" if not self.times and self.step is None else "step"


def observe(rank: RankProgress, line: Mapping[str, Any], now: float) -> RankProgress:
    """``rank`` after one line of its metrics. A line that makes no sense moves nothing."""
    wall = number(line.get("wall"))
    phase, step = line.get("phase"), line.get("step")
    if isinstance(phase, str) and phase != rank.phase:
        longest = _longer(rank, rank.phase, rank.phase_wall, wall)
        return rank._replace(
            phase=phase, longest=longest, moved=now, heard=True, phase_wall=wall, step_wall=None
        )
    if type(step) is int and (rank.step is None or step > rank.step):
        taken = number(line.get("step_time_s"))
        earlier, times = rank.earlier_times, rank.times
        if taken is not None:
            if len(times) == KEPT:
                earlier, times = times, ()
            times = (*times, taken)
        return RankProgress(
            rank.rank,
            rank.host,
            rank.slot,
            now,
            True,
            "train",
            step,
            earlier,
            times,
            _longer(rank, "step", rank.step_wall, wall),
            rank.phase_wall,
            wall,
        )
    return rank if rank.heard else rank._replace(heard=isinstance(phase, str), phase_wall=wall)


def number(value: object) -> Optional[float]:
    """A finite number of a metrics line, or None."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers of any size
        return None


def _longer(
    rank: RankProgress, phase: str, begin: Optional[float], end: Optional[float]
) -> Mapping[str, float]:
    """``longest`` with the time from ``begin`` to ``end`` in ``phase`` taken in."""
    if begin is None or end is None or end < begin:
        return rank.longest
    if end - begin <= rank.longest.get(phase, 0.0):
        return rank.longest
    return {**rank.longest, phase: end - begin}
