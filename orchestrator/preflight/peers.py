"""Whether hosts reach each other: which to try, and what the results say about whom."""

from __future__ import annotations

from collections import Counter
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from orchestrator.inventory import Host
from orchestrator.preflight.blame import Pair, blame
from orchestrator.preflight.catalogue import PEERS
from orchestrator.preflight.compare import Place
from orchestrator.preflight.findings import CRIT, Finding
from orchestrator.preflight.needs import cluster_address
from orchestrator.preflight.pings import choose
from orchestrator.preflight.survey import Peer, Survey


def choose_peers(
    hosts: Sequence[Host], port: int, *, full: bool = False
) -> Dict[str, Tuple[Peer, ...]]:
    """For each host the next one in a ring and one far away; ``full``: all others. A host of
    which no IP is known is reached by its name."""
    addresses = {host.name: {0: _address(host)} for host in hosts}
    return {
        name: tuple(Peer(ping.peer, ping.address, port) for ping in pings)
        for name, pings in choose(addresses, full=full).items()
    }


def peer_findings(survey: Survey) -> Iterator[Finding]:
    """A host that reaches none and is reached by none; else the pair."""
    tried: Counter[Place] = Counter()
    failures: Dict[Pair, Tuple[Peer, str]] = {}
    asked = 0
    for host, report in survey.answered():
        for peer, error in zip(survey.peers.get(host.name, ()), report.peers):
            if peer.name not in survey.reports:
                continue  # it could not be reached from here either, which is said already
            pair: Pair = ((host.name, None), (peer.name, None))
            asked += 1
            tried.update(pair)
            if error is not None:
                failures[pair] = (peer, error)
    yield from _findings(survey, failures, tried, asked)


def _findings(
    survey: Survey, failures: Mapping[Pair, Tuple[Peer, str]], tried: Counter[Place], asked: int
) -> Iterator[Finding]:
    found = blame(list(failures), tried, asked)
    bad = {source for source, _ in failures}
    if found.everyone:
        error = next(iter(failures.values()))[1]
        yield PEERS.bad(CRIT, f"no host reaches another: {error}")
    for place, peers in found.alone.items():
        names = ", ".join(dict.fromkeys(host for host, _ in peers))
        error = next(e for pair, (_, e) in failures.items() if place in pair)
        evidence = f"no connection from and to this host ({names}): {error}"
        yield PEERS.bad(CRIT, evidence, place[0])
    for pair, (peer, error) in failures.items():
        if pair in found.pairs:
            evidence = f"port {peer.port} of {peer.name} ({peer.address}): {error}"
            yield PEERS.bad(CRIT, evidence, pair[0][0])
    for host in _well(survey, tried):
        if (host, None) not in bad:
            yield PEERS.ok("peers answer", host)


def _well(survey: Survey, tried: Counter[Place]) -> List[str]:
    return [host.name for host, _ in survey.answered() if (host.name, None) in tried]


def _address(host: Host) -> str:
    address = cluster_address(host)
    return str(host.address) if address == "0.0.0.0" else address
