"""What must be the same on all hosts: who is the odd one out."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Dict, Hashable, Iterator, List, Mapping, Optional, Sequence, Tuple, TypeVar

from orchestrator.planning.facts import HostFacts
from orchestrator.preflight.catalogue import (
    CANN,
    CLOCK,
    CODE,
    DRIVER,
    FIRMWARE,
    HOSTNAME,
    MINDSPORE,
    PYTHON,
    SKEW_CRIT_S,
    SKEW_WARN_S,
)
from orchestrator.preflight.findings import ASCEND, CRIT, WARN, Check, Finding
from orchestrator.preflight.survey import Exchange, Survey
from orchestrator.problems import shown

Place = Tuple[str, Optional[int]]
"""Host, and device where it is one device's matter."""

UNKNOWN = "not found"
_NAMED = 4

K = TypeVar("K", bound=Hashable)


def differences(
    check: Check, label: str, values: Mapping[Place, str], *, noun: str, status: str
) -> Iterator[Finding]:
    """Findings for places whose value is not that of the majority; one OK when all agree.

    The evidence counts the others and names the odd ones: ``11 hosts CANN 7.0.RC1, 192.168.0.7:
    6.3.RC2``. Without a majority the finding is nobody's. A value that is UNKNOWN is only a WARN.
    """
    ordered = groups(values)
    if not ordered:
        return
    usual, holders = ordered[0]
    if len(ordered) == 1:
        if usual == UNKNOWN:
            yield check.bad(WARN, f"no host says its {label}")
        else:
            yield check.ok(f"{label} {shown(usual, 100)[1:-1]}")
        return
    if len(holders) == len(ordered[1][1]):
        evidence = ", ".join(_names(places, noun) + f": {value}" for value, places in ordered)
        known = [value for value, _ in ordered if value != UNKNOWN]
        yield check.bad(status if len(known) > 1 else WARN, f"{label} differs: {evidence}")
        return
    odd = ", ".join(f"{_names(places, noun)}: {value}" for value, places in ordered[1:])
    evidence = f"{_count(len(holders), noun)} {label} {usual}, {odd}"
    for value, places in ordered[1:]:
        for host, device in places:
            yield check.bad(WARN if value == UNKNOWN else status, evidence, host, device)


def groups(values: Mapping[K, str]) -> List[Tuple[str, List[K]]]:
    """Values with who has them, the most frequent first."""
    found: Dict[str, List[K]] = defaultdict(list)
    for key, value in values.items():
        found[value].append(key)
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))


def version_findings(survey: Survey) -> Iterator[Finding]:
    """Driver, firmware, CANN, MindSpore, Python and the code of glm2."""
    facts: Dict[Place, HostFacts] = {(h.name, None): r.facts for h, r in survey.answered()}
    ascend = {(h.name, None) for h, _ in survey.answered() if h.device_target == ASCEND}
    found: List[Tuple[Check, str, Dict[Place, Optional[str]]]] = [
        (DRIVER, "driver", {p: f.driver for p, f in facts.items() if p in ascend}),
        (FIRMWARE, "firmware", {p: f.firmware for p, f in facts.items() if p in ascend}),
        (CANN, "CANN", {p: f.cann for p, f in facts.items() if p in ascend}),
    ]
    for check, label, values in found:
        yield from differences(check, label, _texts(values), noun="host", status=CRIT)
    mindspore = _texts({place: f.mindspore for place, f in facts.items() if f.mindspore})
    yield from differences(MINDSPORE, "MindSpore", mindspore, noun="host", status=CRIT)
    python = _texts({place: f.python for place, f in facts.items()})
    yield from differences(PYTHON, "Python", python, noun="host", status=WARN)
    code: Dict[Place, str] = {
        (host.name, None): f"sha256 {report.code[:12]}"
        for host, report in survey.answered()
        if report.code is not None
    }
    if code:
        yield from differences(CODE, "glm2 with", code, noun="host", status=WARN)
    elif facts:
        yield CODE.skip("glm2 is installed on no host; `launch` sends it along")


def hostname_findings(survey: Survey) -> Iterator[Finding]:
    """Two hosts of the same name. MindSpore counts the devices of a host by its hostname."""
    holders: Dict[str, List[str]] = defaultdict(list)
    for host, report in survey.answered():
        if host.device_target == ASCEND:
            holders[(report.facts.hostname or "").lower()].append(host.name)
    for hostname, hosts in holders.items():
        if len(hosts) == 1 and hostname:
            yield HOSTNAME.ok(hostname, hosts[0])
            continue
        who = f"{', '.join(hosts[:_NAMED])}{', …' if len(hosts) > _NAMED else ''}"
        evidence = f"{shown(hostname)} is the hostname of {who}"
        if not hostname:
            evidence = "it has no hostname"
        for name in hosts:
            yield HOSTNAME.bad(CRIT, evidence, name)


def clock_findings(exchanges: Mapping[str, Exchange]) -> Iterator[Finding]:
    """Hosts whose clock is off for certain: beyond what the way of the answer leaves open.

    Compared with the median of all hosts and the controller; of two or fewer hosts, with the
    controller.
    """
    if not exchanges:
        return
    offsets = [exchange.offset for exchange in exchanges.values()]
    many = len(offsets) > 2
    middle = statistics.median([*offsets, 0.0]) if many else 0.0
    error = min(exchange.uncertainty for exchange in exchanges.values()) if many else 0.0
    reference = f"the median of {len(offsets)} hosts" if many else "this machine"
    for host, exchange in exchanges.items():
        skew = exchange.offset - middle
        unsure = exchange.uncertainty + error
        certain = abs(skew) - unsure
        side = "ahead of" if skew > 0 else "behind"
        evidence = f"{abs(skew):.1f} s {side} {reference} (±{unsure:.1f} s)"
        if certain > SKEW_CRIT_S:
            yield CLOCK.bad(CRIT, evidence, host)
        elif certain > SKEW_WARN_S:
            yield CLOCK.bad(WARN, evidence, host)
        else:
            yield CLOCK.ok(evidence, host)


def _texts(values: Mapping[Place, Optional[str]]) -> Dict[Place, str]:
    return {place: value or UNKNOWN for place, value in values.items()}


def _names(places: Sequence[Place], noun: str) -> str:
    """A few by name, more as a number."""
    if len(places) > _NAMED:
        return _count(len(places), noun)
    return ", ".join(
        host if device is None or noun == "host" else f"{host} device {device}"
        for host, device in places
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
