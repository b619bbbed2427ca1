"""Lines that many ranks print alike, once, with the set of ranks. Pure.

Two lines are alike when they differ only in what is never the same: their times, and
the process and thread ids of MindSpore's and CANN's headers.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from orchestrator.logs.ranks import format_ranks

_DIFFERS = re.compile(
    r"^\[?\d\d:\d\d:\d\d(?:[.,]\d+)?\]? ?"  # 11:39:14
    r"|\d{4}[-/]\d\d[-/]\d\d[-T ]\d\d:\d\d:\d\d(?:[.,:]\d+)*"  # a date and time, anywhere
    r"|(?<=[A-Z])\(\d+,[\da-fx]*,?\w*\)"  # MODULE(pid,thread,program) of MindSpore and CANN
    r"|\[PID: ?\d+\]|\(PID:\d+, Device:\d+, RankID:\d+\)"
)


@dataclass(frozen=True)
class Collapsed:
    """A line as its first process printed it, and all processes that printed it."""

    text: str
    processes: Tuple[str, ...]

    def label(self) -> str:
        """``0-7,9-95``; services by their names."""
        ranks = [int(name[5:]) for name in self.processes if _is_rank(name)]
        others = [name for name in self.processes if not _is_rank(name)]
        return ",".join([*([format_ranks(ranks)] if ranks else []), *others])


class Collapser:
    """Holds lines back for ``window_s`` after their first appearance, until all ``processes``
    have printed them, or until ``most`` are held: then the oldest go.

    Lines come out in the order of their first appearance. None is lost: a process that prints a
    line twice is in two groups, and what comes too late is a group of its own.
    """

    def __init__(
        self, processes: Sequence[str], *, window_s: float = 2.0, most: int = 50_000
    ) -> None:
        self._bits = {name: 1 << place for place, name in enumerate(processes)}
        self._all = (1 << len(processes)) - 1
        self._window_s = window_s
        self._most = most
        self._held: OrderedDict[int, _Group] = OrderedDict()
        self._by_key: Dict[str, List[int]] = {}
        self._next = 0

    @property
    def held(self) -> int:
        """Lines that are held back now."""
        return len(self._held)

    def add(self, process: str, text: str, now: float) -> List[Collapsed]:
        """Take a line in; what comes out of it. ``now`` is in monotonic seconds."""
        bit, key = self._bits[process], alike(text)
        for number in self._by_key.get(key, ()):
            group = self._held[number]
            if not group.processes & bit:
                group.processes |= bit
                break
        else:
            self._held[self._next] = _Group(key, text, bit, now)
            self._by_key.setdefault(key, []).append(self._next)
            self._next += 1
        return self._due(now)

    def tick(self, now: float) -> List[Collapsed]:
        """Time has passed; what was held long enough."""
        return self._due(now)

    def flush(self) -> List[Collapsed]:
        """Nothing more comes: all that is held."""
        return [self._pop() for _ in range(len(self._held))]

    def _due(self, now: float) -> List[Collapsed]:
        out: List[Collapsed] = []
        while self._held:
            oldest = next(iter(self._held.values()))
            whole = oldest.processes == self._all
            late = now - oldest.since >= self._window_s
            if not whole and not late and len(self._held) <= self._most:
                break
            out.append(self._pop())
        return out

    def _pop(self) -> Collapsed:
        number, group = self._held.popitem(last=False)
        same = self._by_key[group.key]
        same.remove(number)
        if not same:
            del self._by_key[group.key]
        names = tuple(name for name, bit in self._bits.items() if group.processes & bit)
        return Collapsed(group.text, names)


def alike(text: str) -> str:
    """What two lines that are shown as one have in common.

    >>> alike("11:39:14 compiling") == alike("11:39:15 compiling")
    True
    """
    return _DIFFERS.sub("", text)


class _Group:
    __slots__ = ("key", "processes", "since", "text")

    def __init__(self, key: str, text: str, processes: int, since: float) -> None:
        self.key = key
        self.text = text
        self.processes = processes
        self.since = since


def _is_rank(name: str) -> bool:
    return name.startswith("rank_") and name[5:].isdecimal()
