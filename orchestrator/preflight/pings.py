"""Which NIC pings which, and what the results say about whom."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import AbstractSet, Dict, Iterator, List, Mapping, Sequence, Set

from orchestrator.preflight.blame import blame
from orchestrator.preflight.catalogue import PING
from orchestrator.preflight.compare import Place
from orchestrator.preflight.devices import not_understood
from orchestrator.preflight.findings import CRIT, WARN, Finding
from orchestrator.preflight.hccn_tool import Ping
from orchestrator.preflight.survey import PingResult
from orchestrator.preflight.tools import NotUnderstood, Unanswered

_SAMPLE_STEP = 7
_NAMED = 4


@dataclass(frozen=True)
class PlannedPing:
    """From the NIC of ``device`` on a host to that of the same device on ``peer``."""

    device: int
    peer: str
    address: str


def choose(
    addresses: Mapping[str, Mapping[int, str]], *, full: bool = False
) -> Dict[str, List[PlannedPing]]:
    """What each host pings: for each device the next host in a ring and one far away, so that
    every NIC sends to two others and hears from two. ``full``: all other hosts.

    ``addresses``: by host and device. The same addresses give the same pings.
    """
    chosen: Dict[str, List[PlannedPing]] = {host: [] for host in sorted(addresses)}
    for device in sorted({device for ips in addresses.values() for device in ips}):
        ring = sorted(host for host, ips in addresses.items() if device in ips)
        for index, host in enumerate(ring):
            for step in _steps(len(ring), device, full):
                peer = ring[(index + step) % len(ring)]
                chosen[host].append(PlannedPing(device, peer, addresses[peer][device]))
    return chosen


def ping_findings(results: Sequence[PingResult], down: AbstractSet[Place]) -> Iterator[Finding]:
    """Who is to blame: a NIC whose pings all fail, in both directions, while its peers reach
    others; else the pair. Pings of NICs that are ``down`` say nothing new and do not count."""
    lost: Dict[int, List[PingResult]] = defaultdict(list)
    partly: List[PingResult] = []
    well: Set[Place] = set()
    tried: Counter[Place] = Counter()
    asked: Counter[int] = Counter()
    for result in results:
        if {_source(result), _target(result)} & down:
            continue
        said = result.said
        if isinstance(said, NotUnderstood):
            yield not_understood(said, result.host, result.device)
            continue
        if isinstance(said, Unanswered) and said.missing:
            continue
        asked[result.device] += 1
        tried.update((_source(result), _target(result)))
        if isinstance(said, Ping) and said.received:
            if said.lost:
                partly.append(result)
            else:
                well.add(_source(result))
        else:
            lost[result.device].append(result)
    for device, failures in sorted(lost.items()):
        yield from _judged(device, failures, tried, asked[device])
    for result in partly:
        said = result.said
        share = f"{said.lost} of {said.sent} packets" if isinstance(said, Ping) else "packets"
        evidence = f"{share} to {result.peer} ({result.address}) are lost"
        yield PING.bad(WARN, evidence, *_source(result), remedy=_remedy(result))
    unwell = {_source(r) for results in lost.values() for r in results} | set(map(_source, partly))
    for host, nic in sorted(well - unwell):
        yield PING.ok("peers answer", host, nic)


def _judged(
    device: int, failures: List[PingResult], tried: Counter[Place], asked: int
) -> Iterator[Finding]:
    """``tried``: pings from or to each NIC; ``asked``: all pings between NICs of this index."""
    found = blame([(_source(r), _target(r)) for r in failures], tried, asked)
    if found.everyone:
        evidence = f"no host reaches another by device {device}: {asked} of {asked} pings are lost"
        yield PING.bad(CRIT, evidence, device=device, remedy=_remedy(failures[0]))
    for place, peers in found.alone.items():
        names = list(dict.fromkeys(host for host, _ in peers))
        who = ", ".join(names[:_NAMED]) + (
            f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
        )
        evidence = f"all {len(peers)} pings from and to this NIC are lost ({who})"
        theirs = next(r for r in failures if place in (_source(r), _target(r)))
        yield PING.bad(CRIT, evidence, *place, remedy=_remedy(theirs, place[0]))
    for result in failures:
        if (_source(result), _target(result)) in found.pairs:
            evidence = f"no answer from {result.peer} ({result.address})"
            if isinstance(result.said, Unanswered):
                evidence += f": {result.said.why}"
            yield PING.bad(CRIT, evidence, *_source(result), remedy=_remedy(result))


def _steps(size: int, device: int, full: bool) -> Sequence[int]:
    """By how many places of the ring the targets are away."""
    if size < 2:
        return ()
    if full:
        return range(1, size)
    if size == 2:
        return (1,)
    return (1, 2 + device * _SAMPLE_STEP % (size - 2))


def _source(result: PingResult) -> Place:
    return result.host, result.device


def _target(result: PingResult) -> Place:
    return result.peer, result.device


def _remedy(result: PingResult, host: str = "") -> str:
    command = f"hccn_tool -i {result.device} -ping -g address {result.address}"
    where = f" of {host}" if host else ""
    return f"ssh {result.host} {command}; check address, gateway, VLAN and switch port{where}"
