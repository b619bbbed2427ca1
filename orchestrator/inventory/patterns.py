"""Host patterns: ``192.168.0.[0-11]``, ``node[01-12]``, ``rack[1,3]n[1-4],login1``."""

from __future__ import annotations

import itertools
import re
from typing import Iterator, List, Optional, Sequence, Tuple

_MOST_NAMES = 65_536
_ITEM = re.compile(r"(\d+)(?:-(\d+))?")


class PatternError(ValueError):
    """A pattern that cannot be read. ``offset`` is the index of the faulty part in it."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def expand(pattern: str) -> List[str]:
    """Names that ``pattern`` stands for, in order.

    Brackets hold numbers and inclusive ranges (``[0-3,7]``); a leading zero sets the width
    (``[01-12]``); commas outside brackets separate patterns. Raises PatternError.

    >>> expand("node[08-10],login1")
    ['node08', 'node09', 'node10', 'login1']
    """
    names: List[str] = []
    for part, offset in split(pattern):
        if not part:
            raise PatternError("a host name is missing", offset)
        names.extend(_product(part, offset))
        if len(names) > _MOST_NAMES:
            raise PatternError(f"stands for more than {_MOST_NAMES} names", offset)
    return names


def fold(names: Sequence[str]) -> List[str]:
    """Patterns that stand for ``names``, in their order: ``expand`` gives them back.

    >>> fold(["192.168.0.9", "192.168.0.10", "192.168.0.11", "login"])
    ['192.168.0.[9-11]', 'login']
    """
    patterns: List[str] = []
    runs = itertools.groupby(enumerate(names), key=lambda item: _run_of(*item))
    for (stem, _, _), group in runs:
        items = [name for _, name in group]
        if stem is None or len(items) == 1:
            patterns.extend(items)
            continue
        first, last = items[0][len(stem) :], items[-1][len(stem) :]
        patterns.append(f"{stem}[{first}-{last}]")
    return patterns


def _run_of(index: int, name: str) -> Tuple[Optional[str], int, int]:
    """What names next to each other in a range have in common."""
    found = re.fullmatch(r"(.*?)(\d{1,5})", name, re.ASCII)
    if found is None or "[" in name or "," in name:
        return None, 0, 0
    digits = found[2]
    padded = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
    return found[1], padded, int(digits) - index


def split(pattern: str) -> Iterator[Tuple[str, int]]:
    """Parts of ``pattern`` between commas outside brackets, stripped, each with its offset."""
    start = depth = 0
    for i, char in enumerate(pattern + ","):
        if char == "[":
            depth += 1
        elif char == "]":
            depth = max(depth - 1, 0)
        elif char == "," and (depth == 0 or i == len(pattern)):
            part = pattern[start:i]
            yield part.strip(), start + len(part) - len(part.lstrip())
            start = i + 1


def _product(part: str, base: int) -> Iterator[str]:
    choices: List[List[str]] = []
    count = 1
    at = 0
    while at < len(part):
        opening = part.find("[", at)
        literal = part[at:] if opening < 0 else part[at:opening]
        stray = literal.find("]")
        if stray >= 0:
            raise PatternError("`]` without `[`", base + at + stray)
        choices.append([literal])
        if opening < 0:
            break
        closing = part.find("]", opening)
        if closing < 0:
            raise PatternError("`[` is not closed", base + opening)
        numbers = _numbers(part[opening + 1 : closing], base + opening + 1)
        count *= len(numbers)
        if count > _MOST_NAMES:
            raise PatternError(f"stands for more than {_MOST_NAMES} names", base + opening)
        choices.append(numbers)
        at = closing + 1
    return map("".join, itertools.product(*choices))


def _numbers(inside: str, base: int) -> List[str]:
    numbers: List[str] = []
    offset = base
    for item in inside.split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None:
            raise PatternError(
                f"`{item.strip()}` in brackets is neither a number nor a range such as 0-11", offset
            )
        low, high = found.group(1), found.group(2) or found.group(1)
        if int(high) < int(low):
            raise PatternError(f"range {low}-{high} runs backwards", offset)
        if int(high) - int(low) >= _MOST_NAMES:
            raise PatternError(f"stands for more than {_MOST_NAMES} names", offset)
        padded = len(low) > 1 and low.startswith("0")
        if high.startswith("0") and len(high) > 1 and len(high) != len(low):
            raise PatternError(f"range {low}-{high} mixes widths of zero padding", offset)
        width = len(low) if padded else 0
        numbers.extend(str(n).zfill(width) for n in range(int(low), int(high) + 1))
        offset += len(item) + 1
    return numbers
