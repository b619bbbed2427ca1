"""The rank-table linter beside what the hosts say of themselves."""

from __future__ import annotations

from typing import Dict

import pytest

from orchestrator.inventory import Inventory
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.ranktable import host_table, merge
from orchestrator.planning.ranktable_lint import CheckedTable, check_table
from tests.unit.planning.inputs import ascend, codes, reported


@pytest.fixture
def two_hosts() -> Inventory:
    return ascend("{n1: {server_id: 10.0.0.1}, n2: {server_id: 10.0.0.2}}")


def drift(inventory: Inventory, facts: Dict[str, HostFacts], servers: int = 2) -> CheckedTable:
    tables = [
        host_table(f"10.0.0.{n}", {d: f"10.{d}.0.{n}" for d in range(8)})
        for n in range(1, servers + 1)
    ]
    text = merge(tables).to_json()
    return check_table(text.encode(), "t.json", hosts=inventory.hosts, facts=facts)


def test_a_table_that_the_hosts_confirm(two_hosts):
    checked = drift(two_hosts, {"n1": reported(1), "n2": reported(2)})
    assert codes(checked) <= {"RT036"}


def test_drift(two_hosts):
    checked = drift(two_hosts, {"n1": reported(1), "n2": reported(3)})
    drifted = [finding for finding in checked.findings if finding.rule.code == "RT090"]
    assert len(drifted) == 8
    assert "n2 reports '10.0.0.3' for device 0" in drifted[0].message
    assert "RT092" in codes(drift(two_hosts, {"n1": reported(1)}))
    assert "RT091" in codes(drift(two_hosts, {"n1": reported(1)}, servers=1))
    assert "RT091" in codes(drift(two_hosts, {"n1": reported(1)}, servers=3))


def test_a_host_that_cannot_be_asked_is_a_warning_of_its_own(two_hosts):
    text = merge([host_table(f"10.0.0.{n}", {0: f"10.0.0.{n}"}) for n in (1, 2)]).to_json()
    facts = {"n1": HostFacts(device_ips={0: "10.0.0.1"})}
    unasked = {"n2": "no route to host"}
    checked = check_table(
        text.encode(), "t.json", hosts=two_hosts.hosts, facts=facts, unasked=unasked
    )
    (finding,) = checked.findings
    assert (finding.rule.code, finding.is_error) == ("RT092", False)
    assert finding.message == "n2 could not be asked: no route to host"


def test_an_address_may_be_written_in_several_ways(two_hosts):
    text = merge([host_table(f"10.0.0.{n}", {0: f"fd00::{n}", 1: f"fd01::{n}"}) for n in (1, 2)])
    spelt = text.to_json().replace("fd00::1", "fd00:0:0::0001").replace("fd01::1", "FD01::1")
    facts = {f"n{n}": HostFacts(device_ips={0: f"fd00::{n}", 1: f"fd01::{n}"}) for n in (1, 2)}
    checked = check_table(spelt.encode(), "t.json", hosts=two_hosts.hosts, facts=facts)
    assert codes(checked) == set()
