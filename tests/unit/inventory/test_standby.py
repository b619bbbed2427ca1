"""Quarantined hosts are left out, spares take their places."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostNotReady
from orchestrator.inventory import Inventory, Quarantined, limit, working_hosts
from orchestrator.planning.planner import plan
from tests.unit.planning.inputs import inventory, job

TEXT = """\
cluster: c
defaults: {device_target: CPU, devices: "[0,2)", workdir: /data}
groups:
  workers: {hosts: "10.0.0.[1-4]"}
  spares: {hosts: "10.0.0.[10-12]"}
"""


@pytest.fixture
def cluster() -> Inventory:
    return inventory(TEXT)


def bad(*names: str, until: float = 1_769_868_300.0) -> list[Quarantined]:
    return [Quarantined(name, "link down", "preflight", 1.0, until) for name in names]


def names(found: Inventory) -> list[str]:
    return [host.name for host in found.hosts]


def test_nothing_changes_without_a_quarantine(cluster: Inventory) -> None:
    assert working_hosts(cluster, []) == (cluster, ())
    assert working_hosts(cluster, bad("elsewhere")) == (cluster, ())


def test_a_spare_takes_the_place_and_a_note_says_so(cluster: Inventory) -> None:
    found, notes = working_hosts(cluster, bad("10.0.0.3"))
    assert names(found) == ["10.0.0.1", "10.0.0.2", "10.0.0.10", "10.0.0.4"]
    assert [spare.name for spare in found.spares] == ["10.0.0.11", "10.0.0.12"]
    assert notes == (
        "10.0.0.3 is quarantined until 2026-01-31 14:05 UTC (link down); 10.0.0.10 takes its place",
    )
    forever, notes = working_hosts(cluster, [replace(bad("10.0.0.3")[0], until=None)])
    assert "quarantined until released" in notes[0]
    assert names(forever) == names(found)


def test_ranks_follow_the_dictionary_order_all_the_same(cluster: Inventory) -> None:
    found, notes = working_hosts(cluster, bad("10.0.0.3"))
    made = plan(found, job(), {}, notes)
    assert [host.host for host in made.hosts] == ["10.0.0.1", "10.0.0.10", "10.0.0.2", "10.0.0.4"]
    assert made.notes == notes


def test_a_bad_spare_takes_no_place(cluster: Inventory) -> None:
    found, notes = working_hosts(cluster, bad("10.0.0.10", "10.0.0.3"))
    assert "10.0.0.11" in names(found)
    assert len(notes) == 1  # a spare that nobody asked for is no news
    assert "10.0.0.10" not in {host.name for host in (*found.hosts, *found.spares)}


def test_too_few_hosts_names_all_who_are_out(cluster: Inventory) -> None:
    with pytest.raises(HostNotReady) as caught:
        working_hosts(cluster, bad("10.0.0.1", "10.0.0.2", "10.0.0.11", "10.0.0.12"))
    assert caught.value.message.splitlines() == [
        "no spare is left to take the place of 10.0.0.2: 3 of 4 hosts can work",
        *(
            f"  {name} is quarantined until 2026-01-31 14:05 UTC by preflight: link down"
            for name in ("10.0.0.1", "10.0.0.2", "10.0.0.11", "10.0.0.12")
        ),
    ]
    assert "glm2-orch hosts release -i inv.yaml 10.0.0.2" in caught.value.hint
    assert "--limit '!10.0.0.2'" in caught.value.hint


def test_a_spare_with_other_devices_does_not_fit() -> None:
    uneven = inventory(TEXT + 'hosts:\n  10.0.0.10: {devices: "[0,1)"}\n')
    found, _ = working_hosts(uneven, bad("10.0.0.1"))
    assert names(found)[0] == "10.0.0.11"
    with pytest.raises(HostNotReady, match=r"no spare that has devices like 10\.0\.0\.3 is left"):
        working_hosts(uneven, bad("10.0.0.1", "10.0.0.2", "10.0.0.3"))


def test_a_limit_that_leaves_the_bad_host_out_needs_no_spare(cluster: Inventory) -> None:
    found, notes = working_hosts(limit(cluster, "!10.0.0.3"), bad("10.0.0.3"))
    assert (names(found), notes) == (["10.0.0.1", "10.0.0.2", "10.0.0.4"], ())


def test_an_entry_expires() -> None:
    entry = Quarantined("n1", "x", "operator", since=0.0, until=10.0)
    assert entry.holds(9.9)
    assert not entry.holds(10.0)
    assert replace(entry, until=None).holds(1e12)


everyone = [f"10.0.0.{n}" for n in (1, 2, 3, 4, 10, 11, 12)]


@given(st.sets(st.sampled_from(everyone)), st.randoms())
def test_the_number_of_hosts_stays_and_none_of_them_is_bad(out, random) -> None:
    cluster = inventory(TEXT)
    order = sorted(out)
    random.shuffle(order)
    try:
        found, notes = working_hosts(cluster, bad(*order))
    except HostNotReady:
        assert len(everyone) - len(out) < len(cluster.hosts)
        return
    assert len(set(names(found))) == len(cluster.hosts)
    assert out.isdisjoint(names(found))
    assert len(notes) == len(out & {host.name for host in cluster.hosts})
    assert working_hosts(found, bad(*order)) == (found, ())
    assert working_hosts(cluster, bad(*sorted(out)))[0] == found
