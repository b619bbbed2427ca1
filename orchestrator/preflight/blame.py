"""Of pairs that do not reach each other: whose fault is it?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, FrozenSet, List, Mapping, Sequence, Tuple

from orchestrator.preflight.compare import Place

Pair = Tuple[Place, Place]
"""From, to."""


@dataclass(frozen=True)
class Blame:
    everyone: bool = False
    """Nobody reaches anybody: no place is to blame."""
    alone: Mapping[Place, Sequence[Place]] = field(default_factory=dict)
    """Places of which every pair failed, while their peers reach others; with those peers."""
    pairs: FrozenSet[Pair] = frozenset()
    """Failed pairs of which either end, or the way between them, may be to blame."""


def blame(failures: Sequence[Pair], tried: Mapping[Place, int], asked: int) -> Blame:
    """Who is to blame for ``failures``, out of ``asked`` pairs that were tried; ``tried`` counts
    those from or to each place."""
    if len(failures) == asked and asked > 2:
        return Blame(everyone=True)
    left = list(failures)
    alone: Dict[Place, List[Place]] = {}
    while left:
        failed = Counter(place for pair in left for place in pair)
        worst, count = min(failed.items(), key=lambda item: (-item[1], item[0]))
        peers = [
            source if target == worst else target
            for source, target in left
            if worst in (source, target)
        ]
        if count < 2 or count < tried[worst] or any(failed[peer] >= count for peer in peers):
            break
        alone[worst] = peers
        left = [pair for pair in left if worst not in pair]
    return Blame(alone=alone, pairs=frozenset(left))
