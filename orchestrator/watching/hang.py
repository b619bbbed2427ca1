"""Hangs: no rank gets on for longer than its own pace allows. Pure.

Ranks of one job wait for each other, so when one hangs all stand still; when one still moves, it
is not a hang. The rank to look at is the one that is behind the others, or in another phase.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Optional, Tuple

from orchestrator.watching.progress import RankProgress


@dataclass(frozen=True)
class HangLimits:
    """How long a rank may stand still (seconds), where nothing longer was learned from itself.

    Of a step the limit is the greatest of ``step_s``, ``times_median`` times the median of its own
    steps, and ``times_longest`` times its longest. Of another phase that it came through before
    (checkpoint, eval), ``times_longest`` times the longest counts too. A first evaluation, and a
    phase that is not known, may take as long as they like.
    """

    startup_s: float = 3600.0
    compile_s: float = 7200.0
    first_step_s: float = 1800.0
    step_s: float = 600.0
    checkpoint_s: float = 1800.0
    eval_s: float = 3600.0
    times_median: float = 20.0
    times_longest: float = 3.0

    def of(self, rank: RankProgress) -> float:
        """How long ``rank`` may stand still where it is now."""
        stage = rank.stage
        learned = self.times_longest * rank.longest.get(stage, 0.0)
        if stage == "step":
            return max(self.step_s, self.times_median * (rank.step_time or 0.0), learned)
        fixed: Dict[str, float] = {
            "startup": self.startup_s,
            "compile": self.compile_s,
            "first step": self.first_step_s,
            "checkpoint": self.checkpoint_s,
            "eval": self.eval_s if learned else math.inf,
        }
        return max(fixed.get(stage, math.inf), learned)


@dataclass(frozen=True)
class Hang:
    """No rank got on. ``suspects`` differ from the others; empty: none is behind."""

    stage: str
    step: Optional[int]
    still_s: float
    limit_s: float
    suspects: Tuple[int, ...]

    def sentence(self) -> str:
        where = f"after step {self.step}" if self.stage == "step" else f"in {self.stage}"
        text = f"no rank got on for {self.still_s:.0f} s (limit {self.limit_s:.0f} s), {where}"
        if not self.suspects:
            return text + "; none is behind the others"
        shown = ", ".join(map(str, self.suspects[:8])) + (" …" if len(self.suspects) > 8 else "")
        return text + f"; behind the others: rank{'s' * (len(self.suspects) > 1)} {shown}"

    def evidence(self) -> Dict[str, Any]:
        return {
            "stage": self.stage,
            "step": self.step,
            "still_s": round(self.still_s, 1),
            "limit_s": round(self.limit_s, 1),
            "ranks": list(self.suspects),
        }


def find_hang(
    ranks: Collection[RankProgress], now: float, limits: HangLimits = HangLimits()
) -> Optional[Hang]:
    """The hang of a job whose running ranks are ``ranks``; None while any may still move.

    Ranks that are done are left out. A job of which no rank ever wrote metrics is not judged:
    unknown is not still. Nor is one whose ranks are all at their start: a prediction reports no
    phases while it works.
    """
    # First what ends the search at the first rank of most jobs.
    if any(now - rank.moved <= limits.of(rank) for rank in ranks if rank.phase != "done"):
        return None
    running = [rank for rank in ranks if rank.phase != "done"]
    if not any(rank.heard and rank.stage != "startup" for rank in running):
        return None
    last = max(running, key=lambda rank: rank.moved)
    behind = _behind(running)
    first = behind[0] if behind else last
    return Hang(
        stage=first.stage,
        step=first.step,
        still_s=now - last.moved,
        limit_s=max(limits.of(rank) for rank in running),
        suspects=tuple(sorted(rank.rank for rank in behind)),
    )


def _behind(running: List[RankProgress]) -> List[RankProgress]:
    """Ranks at a place where most others are not; of those the ones with the fewest steps. None
    where that would be all of them."""
    places = Counter((rank.stage, rank.step) for rank in running)
    usual, count = places.most_common(1)[0]
    if count == len(running):
        return []
    odd = [rank for rank in running if (rank.stage, rank.step) != usual]
    if count * 2 <= len(running):
        odd = running
    least = min(_steps(rank) for rank in odd)
    behind = [rank for rank in odd if _steps(rank) == least]
    return behind if len(behind) < len(running) else []


def _steps(rank: RankProgress) -> int:
    return -1 if rank.step is None else rank.step
