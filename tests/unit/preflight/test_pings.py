"""Which NIC pings which, and who is to blame."""

from __future__ import annotations

from collections import Counter
from typing import AbstractSet, Callable, Dict, List, Optional, Set, Tuple

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.preflight.hccn_tool import Ping
from orchestrator.preflight.pings import choose, ping_findings
from orchestrator.preflight.survey import PingResult
from orchestrator.preflight.tools import Unanswered

Nic = Tuple[str, Optional[int]]

_HOSTS = st.lists(
    st.tuples(st.integers(0, 99), st.sets(st.integers(0, 7))), min_size=1, unique_by=lambda h: h[0]
)


def addresses(count: int, devices: int = 2) -> Dict[str, Dict[int, str]]:
    return {f"n{h:02}": {d: f"10.{d}.0.{h}" for d in range(devices)} for h in range(count)}


@given(_HOSTS, st.booleans())
def test_every_nic_is_heard_and_hears(hosts: list[tuple[int, Set[int]]], full: bool) -> None:
    known = {f"n{h}": {d: f"10.{d}.0.{h}" for d in devices} for h, devices in hosts}
    chosen = choose(known, full=full)
    assert chosen == choose(dict(reversed(list(known.items()))), full=full)
    for device in range(8):
        ring = {host for host, ips in known.items() if device in ips}
        pairs = [(h, p.peer) for h, ps in chosen.items() for p in ps if p.device == device]
        assert len(set(pairs)) == len(pairs)
        assert all(one != other for one, other in pairs)
        if len(ring) > 1:
            each = len(ring) - 1 if full else min(2, len(ring) - 1)
            assert Counter(one for one, _ in pairs) == dict.fromkeys(ring, each)
            assert Counter(other for _, other in pairs) == dict.fromkeys(ring, each)
    for pings in chosen.values():
        assert all(ping.address == known[ping.peer][ping.device] for ping in pings)


def test_as_many_as_hosts_not_their_square() -> None:
    pings = choose(addresses(1250, 8))
    assert sum(map(len, pings.values())) == 2 * 8 * 1250


def found(
    known: Dict[str, Dict[int, str]],
    lost: Callable[[Nic, Nic], bool],
    down: AbstractSet[Nic] = frozenset(),
) -> List[Tuple[str, str, Optional[int]]]:
    results = [
        PingResult(
            host, p.device, p.peer, p.address,
            Ping(3, 0 if lost((host, p.device), (p.peer, p.device)) else 3),
        )
        for host, planned in choose(known).items()
        for p in planned
    ]  # fmt: skip
    findings = ping_findings(results, down)
    return sorted((f.status, f.host, f.device) for f in findings if f.status != "OK")


@given(st.integers(4, 20), st.data())
def test_a_deaf_nic_is_named_alone(count: int, data: st.DataObject) -> None:
    bad = (f"n{data.draw(st.integers(0, count - 1)):02}", data.draw(st.integers(0, 1)))
    assert found(addresses(count), lambda a, b: bad in (a, b)) == [("CRIT", *bad)]


def test_two_deaf_nics_of_many() -> None:
    bad = {("n03", 0), ("n11", 1)}
    assert found(addresses(16), lambda a, b: bool({a, b} & bad)) == [
        *(("CRIT", "n03", 0), ("CRIT", "n11", 1))
    ]


def test_a_dead_switch_is_nobodys() -> None:
    assert found(addresses(12), lambda a, _: a[1] == 1) == [("CRIT", "", 1)]


def test_two_hosts_cannot_tell() -> None:
    assert found(addresses(2), lambda a, _: a[1] == 0) == [
        *(("CRIT", "n00", 0), ("CRIT", "n01", 0))
    ]


def test_nics_that_are_down_say_nothing_new() -> None:
    bad = ("n01", 0)
    assert found(addresses(5), lambda a, b: bad in (a, b), {bad}) == []


def test_a_ping_that_never_ends_is_lost_but_a_missing_tool_is_not() -> None:
    hung = Unanswered("hccn_tool -ping", "no answer within 15 s")
    (finding,) = ping_findings([PingResult("a", 0, "b", "10.0.0.1", hung)], frozenset())
    assert (finding.status, finding.host) == ("CRIT", "a")
    assert "no answer within 15 s" in finding.evidence
    absent = Unanswered("hccn_tool -ping", "not found")
    assert list(ping_findings([PingResult("a", 0, "b", "10.0.0.1", absent)], frozenset())) == []
