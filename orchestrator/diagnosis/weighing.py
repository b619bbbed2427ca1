"""Which findings of a process count: not those that it overcame, that only wrap others, or that
follow from another rank's end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from orchestrator.diagnosis.evidence import Finding, Process
from orchestrator.diagnosis.signatures import Signature

_AFTERMATH_S = 10.0
"""A rank that complained of others is broken by them: what it reports later is a consequence."""
_WRAP_LINES = 60


@dataclass(frozen=True)
class Seen:
    """A finding of a process that counts, and when it was on our clock."""

    process: Process
    finding: Finding
    time: Optional[float]

    @property
    def order(self) -> Tuple[bool, float, bool, int]:
        rank = self.process.rank
        return self.time is None, self.time or 0.0, rank is None, rank or 0


def is_free(process: Process) -> bool:
    """It may be the cause: we did not end it, and it does not say that somebody else did."""
    if process.ended_by_us:
        return False
    roles = {finding.signature.role for finding in process.findings}
    return roles != {"collateral"}


def is_own(signature: Signature) -> bool:
    """Something that broke in the rank itself, and cannot be the echo of another."""
    return signature.role in ("root", "config") and not signature.may_follow


def counting(process: Process) -> List[Seen]:
    """The findings of a process that count, in the order of their times."""
    last_step = max((log.last_step for log in process.logs if log.last_step), default=None)
    seen = []
    for finding in process.findings:
        kept = _not_overcome(finding, last_step)
        if kept is not None:
            seen.append(Seen(process, kept, process.when(kept.time)))
    telling = [s for s in seen if s.finding.signature.role not in ("generic", "collateral")]
    complaint = min(
        (s.time for s in telling if s.finding.signature.role == "symptom" and s.time is not None),
        default=None,
    )
    return [s for s in seen if not _is_wrapper(s, telling) and not _is_aftermath(s, complaint)]


def _not_overcome(finding: Finding, last_step: Optional[float]) -> Optional[Finding]:
    """None for an error after which the rank still trained; its last occurrence where that
    was later."""
    if last_step is None or finding.time is None or finding.time >= last_step - 1.0:
        return finding
    if finding.last_time is not None and finding.last_time >= last_step - 1.0:
        return replace(finding, time=finding.last_time)
    return None


def _is_wrapper(seen: Seen, telling: List[Seen]) -> bool:
    """An outer error whose log holds a more precise one, before it or just below it."""
    if not seen.finding.signature.wraps:
        return False
    place = seen.finding.place
    for other in telling:
        if other.finding.signature.wraps:
            continue
        near = (
            other.finding.place.file == place.file
            and abs(other.finding.place.line - place.line) <= _WRAP_LINES
        )
        if near or other.time is None or seen.time is None or other.time <= seen.time + 5.0:
            return True
    return False


def _is_aftermath(seen: Seen, complaint: Optional[float]) -> bool:
    own = is_own(seen.finding.signature)
    return (
        own
        and complaint is not None
        and seen.time is not None
        and seen.time > complaint + _AFTERMATH_S
    )
