"""Findings for people: like ones in one row, well ones in one line, the worst last. And the page
of all checks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from orchestrator.errors import HostNotReady, OrchError
from orchestrator.preflight.catalogue import CHECKS
from orchestrator.preflight.findings import CRIT, OK, SKIP, WARN, Finding

_NAMED = 3


@dataclass(frozen=True)
class Row:
    """Findings of one check that say the same, of one or more places."""

    check: str
    status: str
    places: str
    """``node7 device 3``, ``node7 devices 0-7``, ``12 hosts (a, b, c, …)``; empty: nobody's."""
    host: str
    """The host, when it is only one."""
    evidence: str
    remedy: str
    """Of the first place."""


def rows(findings: Sequence[Finding]) -> List[Row]:
    """The warnings, then what is critical; each in the order of the checks."""
    found = []
    for status in (WARN, CRIT):
        alike: Dict[Tuple[str, str], List[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.status == status:
                alike[finding.check, finding.evidence].append(finding)
        for (check, evidence), group in alike.items():
            hosts = {finding.host for finding in group}
            host = hosts.pop() if len(hosts) == 1 else ""
            found.append(Row(check, status, places(group), host, evidence, group[0].remedy))
    return found


def as_errors(findings: Sequence[Finding]) -> List[OrchError]:
    """A HostNotReady for each row that is critical."""
    errors: List[OrchError] = []
    for row in rows(findings):
        if row.status == CRIT:
            where = row.places[len(row.host) :].strip()
            message = (
                f"{row.check}: {where}: {row.evidence}" if where else f"{row.check}: {row.evidence}"
            )
            errors.append(HostNotReady(message, hint=row.remedy, host=row.host))
    return errors


def well(findings: Sequence[Finding]) -> List[str]:
    """Names of the checks that found nothing but OK."""
    bad = {finding.check for finding in findings if finding.status in (WARN, CRIT)}
    good = {finding.check for finding in findings if finding.status == OK}
    return [check.name for check in CHECKS if check.name in good - bad]


def skipped(findings: Sequence[Finding]) -> List[Tuple[str, List[str]]]:
    """Reasons, and the checks that were skipped for them."""
    reasons: Dict[str, List[str]] = defaultdict(list)
    for finding in findings:
        if finding.status == SKIP:
            reasons[finding.evidence].append(finding.check)
    return list(reasons.items())


def verdict(findings: Sequence[Finding], hosts: int) -> str:
    """``12 hosts: 1 critical, 2 warnings, 30 checks OK``: counts rows as they are shown."""
    shown = rows(findings)
    bad = sum(row.status == CRIT for row in shown)
    warned = sum(row.status == WARN for row in shown)
    parts = [f"{bad} critical"] if bad else []
    parts += [f"{warned} warning" + ("" if warned == 1 else "s")] if warned else []
    good = len(well(findings))
    parts.append(f"{good} check{'' if good == 1 else 's'} OK")
    return f"{hosts} host{'' if hosts == 1 else 's'}: {', '.join(parts)}"


def places(findings: Sequence[Finding]) -> str:
    """Hosts and devices of findings, in few words."""
    devices: Dict[str, List[int]] = defaultdict(list)
    for finding in findings:
        numbers = devices[finding.host]
        if finding.device is not None:
            numbers.append(finding.device)
    if len(devices) == 1:
        ((host, numbers),) = devices.items()
        return f"{host} {_devices(numbers)}".strip()
    names = ", ".join(list(devices)[:_NAMED]) + (", …" if len(devices) > _NAMED else "")
    same = {tuple(numbers) for numbers in devices.values()}
    which = _devices(list(same.pop())) if len(same) == 1 else "several devices"
    return f"{len(devices)} hosts ({names}) {which}".strip()


def page() -> str:
    """The documentation of all checks, in Markdown (``docs/preflight.md``)."""
    lines = [
        "# Preflight: the checks",
        "",
        "`glm2-orch preflight --inventory FILE` asks all hosts at once and reports these checks;",
        "`glm2-orch launch` does so before it sends anything (`--skip-preflight` leaves it out).",
        "Exit status: 0 all is well, or warnings only; 4 something is critical; 5 nothing but",
        "hosts that cannot be reached. This page is generated from the code",
        "(`glm2-orch preflight --list-checks`); a test compares it.",
        "",
        "*class* says whose matter a finding is: the host's, the network's, the user's who",
        "starts the job, or the cluster's, whose hosts differ; then the odd ones out are named.",
        "Checks for Ascend are skipped on other devices. Of one host alone the network of its",
        "devices is not needed: what is critical there is then a warning. Large files are compared",
        "by 64 samples of 1 MiB; `--full` reads them whole, and pings all pairs of hosts.",
        "",
        "Formats of `npu-smi` and `hccn_tool` are taken from outputs published for npu-smi 23 to",
        "26; what has another form is a warning with the raw text. *Unverified*: no check that is",
        "for Ascend was run on Ascend hardware; the tests run them on ssh servers with stand-ins",
        "for the two tools. On cards of two chips (A3) health and ECC are asked for by the number",
        "of the device where npu-smi may want that of the card.",
        "",
        "| check | class | for | what is made sure of | WARN | CRIT | what to do |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for check in CHECKS:
        cells = (
            f"`{check.name}`",
            check.klass,
            check.target or "all",
            check.title,
            check.warn or "–",
            check.crit or "–",
            check.remedy.replace("{host}", "HOST").replace("{device}", "N"),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _devices(numbers: List[int]) -> str:
    if not numbers:
        return ""
    unique = sorted(set(numbers))
    if len(unique) == 1:
        return f"device {unique[0]}"
    whole = unique == list(range(unique[0], unique[-1] + 1)) and len(unique) > 2
    return "devices " + (f"{unique[0]}-{unique[-1]}" if whole else ",".join(map(str, unique)))
