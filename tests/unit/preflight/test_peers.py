"""Which hosts try to reach each other, and who is to blame."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, List, Tuple

from orchestrator.inventory import ServerId, SshAddress
from orchestrator.preflight.peers import choose_peers, peer_findings
from tests.unit.preflight.surveys import host, report, survey


def found(count: int, cut: Callable[[str, str], bool]) -> List[Tuple[str, str, str]]:
    whole = survey(*(report(number) for number in range(1, count + 1)))
    peers = choose_peers(whole.hosts, 60000)
    reports = {
        name: replace(
            whole.reports[name],
            peers=tuple("timed out" if cut(name, peer.name) else None for peer in chosen),
        )
        for name, chosen in peers.items()
    }
    return [
        (f.status, f.host, f.evidence)
        for f in peer_findings(replace(whole, reports=reports, peers=peers))
        if f.status != "OK"
    ]


def test_a_ring_and_a_sample() -> None:
    hosts = [host(number) for number in range(1, 13)]
    chosen = choose_peers(hosts, 60000)
    assert {len(peers) for peers in chosen.values()} == {2}
    assert {peer.name for peers in chosen.values() for peer in peers} == {h.name for h in hosts}
    assert {len(peers) for peers in choose_peers(hosts, 60000, full=True).values()} == {11}
    assert choose_peers(hosts[:1], 60000) == {"node1": ()}


def test_a_host_without_a_known_ip_is_reached_by_its_name() -> None:
    named = replace(host(1), server_id=ServerId("rack1"), address=SshAddress("node1.example"))
    (peer,) = choose_peers([named, host(2)], 8118)["node2"]
    assert (peer.address, peer.port) == ("node1.example", 8118)


def test_who_is_to_blame() -> None:
    assert found(6, lambda a, b: False) == []
    (alone,) = found(6, lambda a, b: "node4" in (a, b))
    assert alone[:2] == ("CRIT", "node4")
    assert found(6, lambda a, b: True) == [("CRIT", "", "no host reaches another: timed out")]
    pair = [("CRIT", "node1", "port 60000 of node2 (192.168.0.2): timed out")]
    assert found(6, lambda a, b: (a, b) == ("node1", "node2")) == pair


def test_a_host_that_did_not_answer_is_not_named_again() -> None:
    whole = survey(report(1), report(2), report(3))
    peers = choose_peers(whole.hosts, 60000)
    reports = {
        name: replace(
            whole.reports[name],
            peers=tuple("timed out" if peer.name == "node3" else None for peer in peers[name]),
        )
        for name in ("node1", "node2")
    }
    judged = list(peer_findings(replace(whole, reports=reports, peers=peers)))
    assert {(f.status, f.host) for f in judged} == {("OK", "node1"), ("OK", "node2")}
