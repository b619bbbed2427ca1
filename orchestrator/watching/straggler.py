"""Stragglers: a rank, a host or a slot whose steps take longer than those of the others. Pure.

A host is named when most of its ranks are slow, a slot when the same device of most hosts is (a
cabling or cooling pattern): the cause is then not in a single card.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any, Callable, Collection, Dict, Iterable, List, Set, Tuple, Union

from orchestrator.watching.progress import KEPT, RankProgress

_AHEAD = 8
"""So many steps ahead ``even_until`` looks: the median stays within the middle half of times."""


@dataclass(frozen=True)
class StragglerLimits:
    """When steps are slow: ``ratio`` times the median of all ranks, beyond ``spreads`` times the
    usual spread, over at least ``steps`` steps. ``most`` is the share that makes a host slow."""

    ratio: float = 1.2
    spreads: float = 6.0
    steps: int = 8
    most: float = 0.75


@dataclass(frozen=True)
class Straggler:
    """What is slow: ``kind`` is host, slot or rank, ``name`` which one. ``ratio``: how much
    longer its steps take than those of the median rank."""

    kind: str
    name: Union[str, int]
    ranks: Tuple[int, ...]
    ratio: float

    def evidence(self) -> Dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "ranks": list(self.ranks),
            "ratio": round(self.ratio, 2),
        }


def find_stragglers(
    ranks: Iterable[RankProgress], limits: StragglerLimits = StragglerLimits()
) -> List[Straggler]:
    """The slow ones, the slowest first. Fewer than three ranks cannot be compared."""
    known = [rank for rank in ranks if len(rank.step_times) >= max(1, limits.steps)]
    if len(known) < 3:
        return []
    times = {rank.rank: rank.step_time or 0.0 for rank in known}
    middle = median(times.values())
    spread = median(abs(time - middle) for time in times.values())
    bound = max(limits.ratio * middle, middle + limits.spreads * spread)
    slow = {rank for rank, time in times.items() if time > bound}
    if not slow:
        return []
    found: List[Straggler] = []
    kinds: Tuple[Tuple[str, Callable[[RankProgress], Union[str, int]]], ...] = (
        ("host", lambda rank: rank.host),
        ("slot", lambda rank: rank.slot),
        ("rank", lambda rank: rank.rank),
    )
    for kind, place in kinds:
        for name, members in _groups(known, place):
            hit = members & slow
            enough = kind == "rank" or (len(members) > 1 and len(members) < len(known))
            if hit and enough and len(hit) >= limits.most * len(members):
                ratio = median(times[rank] for rank in hit) / middle
                found.append(Straggler(kind, name, tuple(sorted(hit)), ratio))
                slow -= hit
    return sorted(found, key=lambda one: -one.ratio)


def even_until(ranks: Collection[RankProgress], limits: StragglerLimits = StragglerLimits()) -> int:
    """Up to this step of any of these ranks none can be slow, whatever they report; 0: not known.

    Each step puts one time in the place of another, which moves a rank's median by one place of
    the sorted times at most. So for some steps it stays between two of the times that are known.
    """
    lows, highs, first = [], [], math.inf
    for rank in ranks:
        if len(rank.step_times) < max(KEPT, limits.steps) or rank.step is None:
            return 0
        times = sorted(rank.step_times)
        lows.append(times[(KEPT - 1) // 2 - _AHEAD])
        highs.append(times[KEPT // 2 + _AHEAD])
        first = min(first, rank.step)
    if not lows or max(highs) > limits.ratio * median(lows):
        return 0
    return int(first) + _AHEAD


def _groups(
    ranks: Iterable[RankProgress], place: Callable[[RankProgress], Union[str, int]]
) -> List[Tuple[Union[str, int], Set[int]]]:
    groups: Dict[Union[str, int], Set[int]] = defaultdict(set)
    for rank in ranks:
        groups[place(rank)].add(rank.rank)
    return list(groups.items())
