"""Stacks of ranks, compared: where most stand, and which ranks stand elsewhere. Pure.

Ranks of one job do the same work, so in a hang most of them wait in the same call. The ones that
never got there are the ones to look at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Sequence, Tuple

_THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.+)$')
_STOPPED = ("state T,", "state t,")
"""By a signal, or by who traces it (proc(5))."""
_SHOWN_FRAMES = 3


@dataclass(frozen=True)
class Stack:
    """What a host's ``stacks`` command told of one rank (docs/contracts.md, contract 3)."""

    rank: int
    host: str
    source: str
    text: str


@dataclass(frozen=True)
class Group:
    """Ranks that stand at one place: innermost call first."""

    ranks: Tuple[int, ...]
    frames: Tuple[str, ...]

    @property
    def where(self) -> str:
        return " < ".join(self.frames[:_SHOWN_FRAMES]) or "unknown"


def grouped(stacks: Iterable[Stack]) -> Tuple[Group, ...]:
    """Ranks by where they stand, the largest group first."""
    places: Dict[Tuple[str, ...], List[int]] = defaultdict(list)
    for stack in stacks:
        places[frames(stack)].append(stack.rank)
    groups = [Group(tuple(sorted(ranks)), where) for where, ranks in places.items()]
    return tuple(sorted(groups, key=lambda group: (-len(group.ranks), group.ranks)))


def differing(groups: Sequence[Group]) -> Tuple[int, ...]:
    """Ranks whose process is stopped, where others are not; else those that stand elsewhere than
    more than half of all. Empty when there are none and no such half.

    A stopped process goes nowhere, while the others may be caught at different calls of one wait.
    """
    stopped = [group for group in groups if group.where.startswith(_STOPPED)]
    if 0 < len(stopped) < len(groups):
        return tuple(sorted(rank for group in stopped for rank in group.ranks))
    total = sum(len(group.ranks) for group in groups)
    if not groups or len(groups[0].ranks) * 2 <= total:
        return ()
    return tuple(sorted(rank for group in groups[1:] for rank in group.ranks))


def frames(stack: Stack) -> Tuple[str, ...]:
    """The calls of a rank's main thread, innermost first, as ``function (file:line)``; of a
    process that told nothing, its state and what it waits for in the kernel."""
    if stack.source != "faulthandler":
        first = stack.text.partition("\n")[0]
        # Without the process's name and numbers, which differ anyway.
        return (first.partition(": ")[2] or first,) if first else ()
    found: Dict[str, List[str]] = {}
    lines: List[str] = []
    for line in stack.text.splitlines():
        thread = _THREAD.match(line)
        if thread is not None:
            lines = found.setdefault(thread.group(1), [])
            # Threads are listed newest first: of several the main thread is the last.
            lines.clear()
            continue
        frame = _FRAME.match(line)
        if frame is not None:
            file = frame["file"].rpartition("/")[2]
            lines.append(f"{frame['function']} ({file}:{frame['line']})")
    return tuple(found.get("Current thread") or found.get("Thread") or ())


def evidence(groups: Sequence[Group]) -> List[Dict[str, Any]]:
    """The groups as the journal holds them."""
    return [{"ranks": list(group.ranks), "where": group.where} for group in groups]
