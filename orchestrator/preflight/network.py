"""Checks of the devices' NICs: each for itself, and their addresses in the cluster."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Dict, Iterator, List, Mapping, Optional, Set, Tuple

from orchestrator.inventory import Host
from orchestrator.preflight import hccn_tool
from orchestrator.preflight.catalogue import (
    DEVICE_IP,
    GATEWAY,
    LINK,
    NET_HEALTH,
    NETDETECT,
    TLS,
    WIRING,
)
from orchestrator.preflight.compare import Place, differences
from orchestrator.preflight.devices import chip_names
from orchestrator.preflight.findings import ASCEND, CRIT, WARN, Finding
from orchestrator.preflight.hccn_tool import Network, NicAddress
from orchestrator.preflight.outputs import NotSet
from orchestrator.preflight.report import HostReport, answers_by_topic
from orchestrator.preflight.survey import Survey
from orchestrator.preflight.tools import NotUnderstood, Unanswered

_NOT_910A = re.compile(r"910_?B\d|910_?9\d|910C|Ascend910$|9[2-9]\d", re.IGNORECASE)
_UNSET = {"-gateway": GATEWAY, "-netdetect": NETDETECT}


def nic_findings(host: Host, report: HostReport) -> Iterator[Finding]:
    """Link, health, gateway and netdetect of each NIC, as far as the tool told."""
    for answer in report.answers:
        said, place = answer.said, (host.name, answer.device)
        if isinstance(said, hccn_tool.Link):
            yield LINK.ok("UP", *place) if said.up else LINK.bad(CRIT, "link status: DOWN", *place)
        elif isinstance(said, hccn_tool.NetHealth):
            yield _net_health(said.status, place)
        elif isinstance(said, hccn_tool.Gateway):
            yield GATEWAY.ok(str(said.ip), *place)
        elif isinstance(said, hccn_tool.NetDetect):
            yield NETDETECT.ok(str(said.ip), *place)
        elif isinstance(said, NotSet):
            # An address that is not set is found with the addresses.
            for check in (_UNSET[word] for word in answer.argv if word in _UNSET):
                yield check.bad(WARN, f"no {check.name} address is set", *place)


def address_findings(survey: Survey) -> Iterator[Finding]:
    """Each NIC has an address: one of its own, and the one that the inventory declares."""
    holders: Dict[str, List[Place]] = defaultdict(list)
    for host, report in survey.answered():
        for device, ip in known_addresses(host, report).items():
            holders[ip].append((host.name, device))
    for host, report in survey.answered():
        if host.device_target != ASCEND:
            continue
        declared = _declared(host)
        for device in host.devices:
            place = (host.name, device)
            ip = report.facts.device_ips.get(device, "")
            twins = [other for other in holders[ip] if other != place] if ip else []
            if not ip:
                if not _said_already(report, device):
                    why = report.facts.device_ip_errors.get(device, "none is set")
                    yield DEVICE_IP.bad(CRIT, f"no address: {why}", *place)
            elif declared.get(device, ip) != ip:
                evidence = f"the inventory declares {declared[device]}, but the NIC has {ip}"
                yield DEVICE_IP.bad(CRIT, evidence, *place)
            elif twins:
                others = ", ".join(f"{name} device {number}" for name, number in twins[:3])
                yield DEVICE_IP.bad(CRIT, f"{ip} is also the address of {others}", *place)
            else:
                yield DEVICE_IP.ok(ip, *place)


def known_addresses(host: Host, report: HostReport) -> Dict[int, str]:
    """Addresses of the host's NICs by device: what the host says, else what is declared."""
    return {**_declared(host), **report.facts.device_ips}


def tls_findings(survey: Survey) -> Iterator[Finding]:
    """The TLS switch of every NIC."""
    switches: Dict[Place, str] = {
        (host.name, device): "on" if said.on else "off"
        for host, report in survey.answered()
        for device, said in answers_by_topic(report, hccn_tool.TlsSwitch).items()
    }
    return differences(TLS, "with TLS", switches, noun="NIC", status=CRIT)


def wiring_findings(survey: Survey) -> Iterator[Finding]:
    """NICs of one index share a subnet; k and k+4 of a 910A host, too. HCCL does not check it."""
    networks: Dict[int, Dict[Place, Network]] = defaultdict(dict)
    for host, report in survey.answered():
        for device, nic in answers_by_topic(report, NicAddress).items():
            if device is not None:
                networks[device][host.name, device] = nic.network
    odd: Set[Place] = set()
    for device, by_place in sorted(networks.items()):
        values = {place: str(network) for place, network in by_place.items()}
        label = f"with device {device} in"
        for finding in differences(WIRING, label, values, noun="host", status=WARN):
            odd.add((finding.host, finding.device))
            yield finding
    for host, report in survey.answered():
        if not any(map(_NOT_910A.search, chip_names(report))):
            yield from _pairs(host, networks, odd)


def down(survey: Survey) -> Set[Place]:
    """NICs whose link is down, so that no ping from or to them can succeed."""
    return {
        (host.name, device)
        for host, report in survey.answered()
        for device, link in answers_by_topic(report, hccn_tool.Link).items()
        if not link.up
    }


def _pairs(
    host: Host, networks: Mapping[int, Mapping[Place, Network]], odd: Set[Place]
) -> Iterator[Finding]:
    for device in host.devices:
        low, high = (host.name, device), (host.name, device + 4)
        here = networks.get(device, {}).get(low)
        there = networks.get(device + 4, {}).get(high)
        if here is None or there is None or here == there or {low, high} & odd:
            continue
        evidence = f"devices {device} and {device + 4} are in {here} and {there}"
        yield WIRING.bad(WARN, evidence, host.name, device + 4)


def _net_health(status: str, place: Tuple[str, Optional[int]]) -> Finding:
    if status == "Success":
        return NET_HEALTH.ok(status, *place)
    level = WARN if status == "Init" else CRIT
    return NET_HEALTH.bad(level, f"net health status: {status}", *place)


def _declared(host: Host) -> Dict[int, str]:
    return {device: str(ip) for device, ip in zip(host.devices, host.device_ips)}


def _said_already(report: HostReport, device: int) -> bool:
    """Whether hccn_tool could not be asked for the address, or was not understood."""
    return any(
        answer.device == device
        and "-ip" in answer.argv
        and isinstance(answer.said, (NotUnderstood, Unanswered))
        for answer in report.answers
    )
