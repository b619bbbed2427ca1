"""Sets of ranks as people write them: ``0-7,9``."""

from __future__ import annotations

from typing import FrozenSet, Iterable, List

from orchestrator.errors import UsageError

_LIMIT = 1_000_000


def parse_ranks(text: str) -> FrozenSet[int]:
    """``"0-2,9"`` -> {0, 1, 2, 9}. Raises UsageError naming the faulty part."""
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{part!r} in {text!r} is not a rank", hint="write ranks as 0-7,9")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > _LIMIT:
            raise UsageError(f"{part!r} is not a range of ranks", hint="write ranks as 0-7,9")
        ranks.update(range(low, high + 1))
    return frozenset(ranks)


def format_ranks(ranks: Iterable[int]) -> str:
    """The shortest writing: {0, 1, 2, 9} -> ``"0-2,9"``."""
    parts: List[str] = []
    run: List[int] = []
    for rank in [*sorted(set(ranks)), None]:
        if run and rank != run[-1] + 1:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if rank is not None:
            run.append(rank)
    return ",".join(parts)
