"""Waiting for devices that other runs hold, with real locks."""

from __future__ import annotations

import sys
from typing import List

import pytest

from orchestrator.engine.waiting import holders, wait_for_devices
from orchestrator.errors import Busy, HostNotReady
from orchestrator.inventory import Host, ServerId, SshAddress, SshOptions
from orchestrator.node import holders as node_holders
from orchestrator.node import leases
from orchestrator.transport.local import LocalTransport


@pytest.fixture
def host(tmp_path):
    (tmp_path / "leases").mkdir()
    return Host(
        name="a",
        address=SshAddress("localhost"),
        server_id=ServerId("a"),
        devices=(0, 1),
        device_target="CPU",
        workdir=str(tmp_path),
        python=sys.executable,
        ssh=SshOptions(),
        connection="local",
    )


def held(host: Host, name: str, run_id: str) -> leases.Lock:
    return leases.take_lease(host.workdir, name, {"run_id": run_id, "pid": 1})


def test_it_is_said_for_whom_and_over_when_nobody_holds_them(host):
    first, second = held(host, "device_0", "one"), held(host, "device_1", "one")
    said: List[str] = []
    turns = iter([first.release, second.release])
    transports = {"a": LocalTransport("a", python=sys.executable)}
    wait_for_devices([host], transports, None, said.append, sleep=lambda _: next(turns)())
    assert said == ["waiting: run one holds 2 devices of a", "waiting: run one holds 1 device of a"]


def test_a_port_that_the_launch_must_have_is_waited_for_on_the_first_host_alone(host):
    first, second = held(host, "device_0", "one"), held(host, "port_8118", "one")
    said: List[str] = []
    turns = iter([first.release, second.release])
    transports = {"a": LocalTransport("a", python=sys.executable)}
    assert holders([host], transports) == (("a", "one", ("device_0",)),)
    other = Host(**{**vars(host), "name": "b", "devices": (7,)})
    assert holders([other, host], {"a": transports["a"]}, 8118) == holders([host], transports)
    wait_for_devices(
        [host], transports, None, said.append, port=8118, sleep=lambda _: next(turns)()
    )
    assert said == [
        "waiting: run one holds 1 device and port 8118 of a",
        "waiting: run one holds port 8118 of a",
    ]


def test_after_its_time_it_is_busy(host):
    lock = held(host, "device_1", "one")
    now = iter([0.0, 1.0, 6.0, 6.0])
    transports = {"a": LocalTransport("a", python=sys.executable)}
    with pytest.raises(Busy, match="waited 5 s in vain: run one holds 1 device of a"):
        wait_for_devices(
            [host], transports, 5.0, lambda _: None, clock=lambda: next(now), sleep=lambda _: None
        )
    lock.release()
    # A file that its holder left behind when it was killed does not count.
    with open(node_holders.path_of(host.workdir, "device_0"), "w") as file:
        file.write('{"run_id":"dead"}')
    assert holders([host], transports) == ()


def test_a_host_that_cannot_tell_is_named(host):
    transports = {"a": LocalTransport("a", python="/nowhere/python3")}
    broken = Host(**{**vars(host), "python": "/nowhere/python3"})
    with pytest.raises(HostNotReady, match="a: /nowhere/python3 cannot tell"):
        holders([broken], transports)
