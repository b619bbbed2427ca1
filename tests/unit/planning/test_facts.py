"""Facts: tolerant of what is missing, strict about what is there."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import HostNotReady
from orchestrator.planning.facts import HostFacts, WorkdirFacts, parse_facts

WHOLE = {
    "schema": 1,
    "hostname": "node1",
    "fqdn": "node1.example",
    "wall": 1732440000.25,
    "mono": 12,
    "python": "3.9.18",
    "python_executable": "/usr/bin/python3",
    "mindspore": "2.2.0",
    "mindspore_error": None,
    "cann": "7.0.RC1",
    "driver": "23.0.rc3",
    "firmware": "7.0.0",
    "device_ips": {"1": "10.0.0.2", "0": "10.0.0.1"},
    "device_ip_source": "hccn_tool",
    "device_ip_errors": {"3": "no ip was preset"},
    "workdir": {"path": "/d", "exists": True, "writable": False, "error": "x", "free_bytes": 0},
    "shm_free_bytes": 1,
    "free_port": 8118,
    "uid": 0,
    "user": "root",
    "boot_id": "b",
    "cpu_count": 192,
    "of_a_newer_probe": [1],
}


def test_a_whole_answer() -> None:
    facts = parse_facts(WHOLE, host="node1")
    assert facts.device_ips == {0: "10.0.0.1", 1: "10.0.0.2"}
    assert facts.device_ip_errors == {3: "no ip was preset"}
    assert facts.workdir == WorkdirFacts("/d", True, False, "x", 0)
    assert facts.mono == 12.0
    assert facts.uid == 0


def test_missing_is_not_known() -> None:
    assert parse_facts({"schema": 1}) == HostFacts()
    assert parse_facts({"schema": 1, "workdir": {"path": "/d"}}).workdir.free_bytes is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"schema": 2},
        {"schema": 1, "hostname": 3},
        {"schema": 1, "cpu_count": True},
        {"schema": 1, "cpu_count": "8"},
        {"schema": 1, "wall": "now"},
        {"schema": 1, "workdir": "/d"},
        {"schema": 1, "device_ips": {"x": "10.0.0.1"}},
        {"schema": 1, "device_ips": {"0": 1}},
        {"schema": 1, "device_ips": []},
    ],
)
def test_a_wrong_type_is_an_error_of_the_host(data: Any) -> None:
    with pytest.raises(HostNotReady, match=r"^node1: "):
        parse_facts(data, host="node1")
