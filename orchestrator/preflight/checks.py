"""``judge(survey) -> findings``: every check, on what the hosts answered. Pure."""

from __future__ import annotations

from typing import Iterator, List, Sequence, Set

from orchestrator.errors import TransportError
from orchestrator.inventory import Host
from orchestrator.preflight.catalogue import (
    ANSWERS,
    CHECKS,
    HCCL_PORTS,
    NPU_PORT,
    PEERS,
    PING,
    REACHABLE,
    SCHEDULER_PORT,
)
from orchestrator.preflight.compare import clock_findings, hostname_findings, version_findings
from orchestrator.preflight.devices import device_findings, tool_findings
from orchestrator.preflight.findings import (
    ASCEND,
    CRIT,
    NETWORK,
    Finding,
    at_most_warn,
)
from orchestrator.preflight.network import (
    address_findings,
    down,
    nic_findings,
    tls_findings,
    wiring_findings,
)
from orchestrator.preflight.peers import peer_findings
from orchestrator.preflight.pings import ping_findings
from orchestrator.preflight.room import (
    essential_findings,
    file_findings,
    port_findings,
    room_findings,
)
from orchestrator.preflight.survey import Survey


def judge(survey: Survey) -> List[Finding]:
    """All findings in the order of CHECKS: OK and SKIP as well as WARN and CRIT.

    Of one host alone the network of its devices is not needed: what is wrong there is a warning.
    """
    found = [*_host_findings(survey), *_cluster_findings(survey)]
    if len(survey.hosts) == 1:
        found = [
            at_most_warn(f) if f.klass == NETWORK and f.check != REACHABLE.name else f
            for f in found
        ]
    found += _skipped(survey, {finding.check for finding in found})
    order = {check.name: number for number, check in enumerate(CHECKS)}
    return sorted(found, key=lambda finding: order[finding.check])


def _host_findings(survey: Survey) -> Iterator[Finding]:
    for name, error in survey.errors.items():
        check = REACHABLE if isinstance(error, TransportError) else ANSWERS
        yield check.bad(CRIT, error.message, name, remedy=error.hint)
    for host, report in survey.answered():
        if host.name not in survey.errors:  # it could be lost between its answer and the pings
            yield REACHABLE.ok("", host.name)
            yield ANSWERS.ok("", host.name)
        if host.device_target == ASCEND:
            yield from tool_findings(host, report)
            yield from device_findings(host, report)
            yield from nic_findings(host, report)
        yield from port_findings(host, report, survey.needs)
        yield from room_findings(host, report)
        yield from essential_findings(host, report.facts, mindspore=survey.needs.mindspore)


def _cluster_findings(survey: Survey) -> Iterator[Finding]:
    yield from address_findings(survey)
    yield from tls_findings(survey)
    yield from wiring_findings(survey)
    # A host that did not answer is named; that its NICs do not answer either says nothing new.
    pings = [result for result in survey.pings if result.peer in survey.reports]
    yield from ping_findings(pings, down(survey))
    yield from peer_findings(survey)
    yield from version_findings(survey)
    yield from hostname_findings(survey)
    yield from clock_findings(survey.exchanges)
    yield from file_findings(survey)


def _skipped(survey: Survey, done: Set[str]) -> Iterator[Finding]:
    """Why the checks without any finding have none."""
    targets = " or ".join(sorted({host.device_target for host in survey.hosts}))
    senseless = not_for(survey.hosts)
    reasons = {
        PING.name: "one host has no peer" if len(survey.hosts) == 1 else "no address to ping",
        PEERS.name: "one host has no peer",
        HCCL_PORTS.name: "one rank needs none",
        NPU_PORT.name: "one rank needs none",
        SCHEDULER_PORT.name: "no port is given: a free one is chosen",
    }
    for check in CHECKS:
        if check.name in done:
            continue
        if check.name in senseless:
            yield check.skip(f"only for {check.target}, not for {targets}")
        else:
            yield check.skip(reasons.get(check.name, "no host told"))


def not_for(hosts: Sequence[Host]) -> List[str]:
    """Names of the checks that make no sense for the devices of ``hosts``."""
    targets = {host.device_target for host in hosts}
    return [check.name for check in CHECKS if check.target and check.target not in targets]
