"""The same message of many ranks as one: ``[0-7,9-95] …``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

from orchestrator.diagnosis.evidence import Finding, Process
from orchestrator.logs.ranks import format_ranks

_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+|\b[0-9a-f]{12,}\b")


@dataclass(frozen=True)
class Group:
    """Findings that differ only in numbers. ``first`` is the one that is shown, and its time on
    our clock; ``processes`` said it, ``count`` times together."""

    first: Finding
    time: Optional[float]
    processes: Tuple[Process, ...]
    count: int

    def label(self) -> str:
        """``0-7,9-95``, or the names where there are no ranks."""
        ranks = [p.rank for p in self.processes if p.rank is not None]
        names = sorted({p.name for p in self.processes if p.rank is None})
        return ",".join(filter(None, [format_ranks(ranks), *names]))


def group(findings: Iterable[Tuple[Process, Finding, Optional[float]]]) -> List[Group]:
    """Groups in the order in which they begin."""
    members: Dict[Tuple[str, str], List[Tuple[Process, Finding, Optional[float]]]] = {}
    for item in findings:
        key = item[1].signature.id, message_shape(item[1].text)
        members.setdefault(key, []).append(item)
    return [
        Group(
            first=same[0][1],
            time=same[0][2],
            processes=tuple({process.name: process for process, _, _ in same}.values()),
            count=sum(finding.count for _, finding, _ in same),
        )
        for same in members.values()
    ]


def message_shape(text: str) -> str:
    """``text`` with all that varies from rank to rank (numbers, addresses, times) as ``#``.

    >>> message_shape("rank[12] at 0x7f12: timeout 120 s")
    'rank[#] at #: timeout # s'
    """
    return _VARYING.sub("#", text)
