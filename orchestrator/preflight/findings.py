"""What a preflight finds: one Finding a check, host and device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Iterable, List, Optional, Sequence

OK = "OK"
WARN = "WARN"
CRIT = "CRIT"
SKIP = "SKIP"

HOST = "host"
NETWORK = "network"
USER = "user"
CLUSTER = "cluster"

ASCEND = "Ascend"
"""Target of the checks that make sense only for Ascend devices."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: str
    """``OK``, ``WARN``, ``CRIT``, or ``SKIP``: does not apply here, and ``evidence`` says why."""
    klass: str
    """Whose matter it is: ``host``, ``network``, ``user`` (the one who starts the job), or
    ``cluster`` (hosts differ)."""
    host: str
    """Inventory name; empty: no single host."""
    device: Optional[int]
    evidence: str
    remedy: str
    """What mends it, a command where there is one; empty when all is well."""


@dataclass(frozen=True)
class Check:
    """A thing that is checked. ``remedy`` may name ``{host}`` and ``{device}``."""

    name: str
    klass: str
    title: str
    remedy: str
    warn: str = ""
    """When it is WARN; empty: never."""
    crit: str = ""
    target: str = ""
    """``Ascend``: only there; empty: everywhere."""

    def ok(self, evidence: str = "", host: str = "", device: Optional[int] = None) -> Finding:
        return Finding(self.name, OK, self.klass, host, device, evidence, "")

    def bad(
        self,
        status: str,
        evidence: str,
        host: str = "",
        device: Optional[int] = None,
        *,
        remedy: str = "",
    ) -> Finding:
        """A WARN or CRIT. ``remedy`` replaces the check's own."""
        text = remedy or self.remedy.replace("{host}", host or "HOST").replace(
            "{device}", "N" if device is None else str(device)
        )
        return Finding(self.name, status, self.klass, host, device, evidence, text)

    def skip(self, why: str) -> Finding:
        return Finding(self.name, SKIP, self.klass, "", None, why, "")


def critical(findings: Iterable[Finding]) -> List[Finding]:
    return [finding for finding in findings if finding.status == CRIT]


def warnings(findings: Iterable[Finding]) -> List[Finding]:
    return [finding for finding in findings if finding.status == WARN]


def bad_hosts(findings: Iterable[Finding]) -> Dict[str, str]:
    """Hosts that should be left out of a job, and why: CRIT findings for which the host or its
    network is to blame. A missing dataset or somebody's process does not make a host bad, and of
    two hosts with one hostname neither is the bad one."""
    reasons: Dict[str, List[str]] = {}
    for finding in critical(findings):
        if finding.host and finding.klass != USER and finding.check != "hostname":
            device = "" if finding.device is None else f" device {finding.device}"
            reason = f"{finding.check}{device}: {finding.evidence}"
            if reason not in reasons.setdefault(finding.host, []):
                reasons[finding.host].append(reason)
    return {host: "; ".join(texts) for host, texts in reasons.items()}


def exit_status(findings: Sequence[Finding]) -> int:
    """0 without a CRIT, 5 when nothing but unreachable hosts is critical, else 4."""
    checks = {finding.check for finding in critical(findings)}
    if not checks:
        return 0
    return 5 if checks == {"reachable"} else 4


def at_most_warn(finding: Finding) -> Finding:
    """The same, but no more than a warning."""
    return replace(finding, status=WARN) if finding.status == CRIT else finding
