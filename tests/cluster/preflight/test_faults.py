"""One fault of each kind on a loopback cluster of three "Ascend" servers: the preflight names
exactly that fault, on that host, and nothing else.

Not run on hardware: the device tools are stand-ins (``ascend.py``).
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Iterator, Optional

import pytest

from orchestrator.engine.hosts import connected
from orchestrator.engine.preflight import Result, preflight
from orchestrator.inventory import DeviceIp
from orchestrator.preflight.catalogue import CHECKS
from orchestrator.preflight.findings import bad_hosts, exit_status
from tests.cluster.preflight.ascend import DEVICES, Ascend, job
from tests.cluster.preflight.faults import FAULTS, Fault
from tests.cluster.sshd import SSHD


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ascend]:
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with ExitStack() as stack:
        cluster = Ascend(stack, tmp_path_factory.mktemp("preflight"), 3)
        cluster.transports = stack.enter_context(connected(cluster.hosts))
        yield cluster


@pytest.fixture
def cluster(servers: Ascend) -> Ascend:
    servers.healthy()
    return servers


def run(cluster: Ascend, **options: bool) -> Result:
    return preflight(cluster.hosts, cluster.transports, job(), **options)


def bad(result: Result) -> set[tuple[str, str, str, Optional[int]]]:
    return {
        (f.status, f.check, f.host, f.device)
        for f in result.findings
        if f.status in ("WARN", "CRIT")
    }


def test_a_healthy_cluster(cluster: Ascend) -> None:
    """All is well; left out is the port that no job names, and the program of another workload."""
    result = run(cluster)
    assert bad(result) == set()
    skipped = {f.check for f in result.findings if f.status == "SKIP"}
    assert skipped == {"mindformers", "scheduler-port"}
    assert {f.check for f in result.findings} == {check.name for check in CHECKS}
    pinged = [(f.host, f.device) for f in result.findings if f.check == "ping"]
    assert len(set(pinged)) == len(pinged) == len(cluster.hosts) * len(DEVICES)
    assert exit_status(result.findings) == 0
    assert bad_hosts(result.findings) == {}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_named_and_nothing_else(cluster: Ascend, fault: Fault) -> None:
    server = cluster.servers[1]
    python = server.home.parent / "bin/glm2-python"
    script = python.read_text()
    try:
        fault.inject(server)
        result = run(cluster)
    finally:
        cluster.loopback.add_tool(server.host, python.name, script)
    names = [server.name for server in cluster.servers]
    assert bad(result) == {
        (status, check, "" if host is None else names[host], device)
        for status, check, host, device in fault.found
    }
    for finding in result.findings:
        if finding.status in ("WARN", "CRIT"):
            assert fault.evidence in finding.evidence
            assert finding.remedy
            assert fault.remedy in finding.remedy
    critical = any(status == "CRIT" for status, *_ in fault.found)
    assert exit_status(result.findings) == (4 if critical else 0)


@pytest.mark.parametrize(
    ("port", "check"), [(60005, "hccl-ports"), (16666, "npu-port")], ids=["HCCL", "NPU"]
)
def test_a_port_is_taken(cluster: Ascend, port: int, check: str) -> None:
    server = cluster.servers[1]
    with closing(socket.create_server((server.host.address, port))):
        result = run(cluster)
    assert bad(result) == {("CRIT", check, server.name, None)}
    (finding,) = [f for f in result.findings if f.status == "CRIT"]
    assert finding.evidence.startswith(f"port {port} is taken by ")
    assert "(pid " in finding.evidence


def test_the_schedulers_port_is_taken(cluster: Ascend, free_port: int) -> None:
    first = cluster.hosts[0]
    wanted = replace(job(), scheduler_port=free_port, recipe="dynamic_cluster")
    well = preflight(cluster.hosts, cluster.transports, wanted)
    with closing(socket.create_server((first.address, free_port))):
        result = preflight(cluster.hosts, cluster.transports, wanted)
    assert bad(well) == set()
    assert bad(result) == {("CRIT", "scheduler-port", first.name, None)}


def test_two_hosts_of_one_name(cluster: Ascend) -> None:
    cluster.servers[1].identity(hostname="node3")
    found = run(cluster)
    names = [server.name for server in cluster.servers[1:]]
    assert bad(found) == {("CRIT", "hostname", name, None) for name in names}


def test_the_same_device_ip_twice(cluster: Ascend) -> None:
    one_, other = cluster.servers[:2]
    other.nic(0, "ip", f"ipaddr:{one_.ip(0)}\nnetmask:255.255.0.0\n")
    cluster.servers[2].pings(0, one_.ip(0))
    one_.pings(0, one_.ip(0))
    other.pings(0, one_.ip(0))
    found = bad(run(cluster))
    assert found == {("CRIT", "device-ip", server.name, 0) for server in (one_, other)}


def test_another_ip_than_declared(cluster: Ascend) -> None:
    """Declared addresses need only one round trip."""
    hosts = [
        replace(s.host, device_ips=tuple(DeviceIp(s.ip(d)) for d in DEVICES))
        for s in cluster.servers
    ]
    said = []
    well = preflight(hosts, cluster.transports, job(), progress=said.append)
    hosts[1] = replace(hosts[1], device_ips=(hosts[1].device_ips[0], DeviceIp("10.1.1.77")))
    for server in (cluster.servers[0], cluster.servers[2]):
        server.pings(4, "10.1.1.77")
    result = preflight(hosts, cluster.transports, job())
    assert bad(well) == set()
    assert all(line.startswith("checking hosts: ") for line in said)
    assert sum(f.check == "ping" and f.status == "OK" for f in well.findings) == 6
    assert bad(result) == {("CRIT", "device-ip", hosts[1].name, 4)}


def test_a_nic_that_nobody_reaches(cluster: Ascend) -> None:
    server = cluster.servers[1]
    cluster.pings(4, deaf=server)
    result = run(cluster)
    assert bad(result) == {("CRIT", "ping", server.name, 4)}
    assert bad_hosts(result.findings).keys() == {server.name}


def test_pings_over_a_dead_link_say_nothing_new(cluster: Ascend) -> None:
    server = cluster.servers[1]
    server.nic(4, "link", "link status: DOWN\n")
    cluster.pings(4, deaf=server)
    assert bad(run(cluster)) == {("CRIT", "link", server.name, 4)}


def test_one_way_is_closed(cluster: Ascend) -> None:
    source, target = cluster.servers[1], cluster.servers[2]
    source.pings(0, target.ip(0), lost=3)
    result = run(cluster)
    assert bad(result) == {("CRIT", "ping", source.name, 0)}
    (finding,) = [f for f in result.findings if f.status == "CRIT"]
    assert finding.evidence == f"no answer from {target.name} ({target.ip(0)})"


def test_a_host_behind_a_firewall(cluster: Ascend) -> None:
    """It reaches nobody and is reached by nobody, as firewalld has it."""
    first, walled, last = cluster.servers
    walled.identity(walls=[first.name, last.name])
    first.identity(walls=[walled.name])
    last.identity(walls=[walled.name])
    result = run(cluster)
    assert bad(result) == {("CRIT", "host-network", walled.name, None)}
    (finding,) = [f for f in result.findings if f.status == "CRIT"]
    assert finding.evidence.endswith("No route to host")
    assert bad_hosts(result.findings).keys() == {walled.name}


def test_a_host_that_cannot_reach_one_other(cluster: Ascend) -> None:
    first, other = cluster.servers[:2]
    first.identity(walls=[other.name])
    result = run(cluster)
    assert bad(result) == {("CRIT", "host-network", first.name, None)}
    (finding,) = [f for f in result.findings if f.status == "CRIT"]
    assert finding.evidence == f"port 60000 of {other.name} ({other.name}): No route to host"


def test_shards_of_each_host(cluster: Ascend) -> None:
    """A folder of weights has other files on each host; it only has to be there."""
    for number, server in enumerate(cluster.servers):
        server.remove("data/glm2.ckpt")
        server.write(f"data/glm2.ckpt/rank_{number}/glm2.ckpt", f"shard {number}")
    assert bad(run(cluster)) == set()


def test_packets_are_lost(cluster: Ascend) -> None:
    source, target = cluster.servers[1], cluster.servers[2]
    source.pings(0, target.ip(0), lost=1)
    assert bad(run(cluster)) == {("WARN", "ping", source.name, 0)}


def test_a_ping_that_is_not_understood(cluster: Ascend) -> None:
    source, target = cluster.servers[1], cluster.servers[2]
    source.say(f"hccn_tool -i 0 -ping -g address {target.ip(0)}", "pong\n")
    assert bad(run(cluster)) == {("WARN", "tool-output", source.name, 0)}


def test_a_host_that_cannot_be_reached(cluster: Ascend) -> None:
    """It is named, the others are still checked."""
    server = cluster.servers[1]
    cluster.servers[2].nic(0, "link", "link status: DOWN\n")
    cluster.loopback.stop(server.host)
    try:
        both = run(cluster)
        cluster.servers[2].nic(0, "link", "link status: UP\n")
        alone = run(cluster)
    finally:
        cluster.loopback.start(server.host)
    unreachable = ("CRIT", "reachable", server.name, None)
    assert bad(both) == {unreachable, ("CRIT", "link", cluster.servers[2].name, 0)}
    assert exit_status(both.findings) == 4
    assert bad(alone) == {unreachable}
    assert exit_status(alone.findings) == 5
    assert bad_hosts(alone.findings).keys() == {server.name}


def test_a_host_that_is_switched_off(cluster: Ascend) -> None:
    """With declared addresses the others ping it all the same; it is named once."""
    hosts = [
        replace(s.host, device_ips=tuple(DeviceIp(s.ip(d)) for d in DEVICES))
        for s in cluster.servers
    ]
    off = cluster.servers[1]
    for device in DEVICES:
        cluster.pings(device, deaf=off)
    cluster.loopback.stop(off.host)
    try:
        result = preflight(hosts, cluster.transports, job())
    finally:
        cluster.loopback.start(off.host)
    assert bad(result) == {("CRIT", "reachable", off.name, None)}


def test_all_pairs(cluster: Ascend) -> None:
    server = cluster.servers[1]
    cluster.pings(0, deaf=server)
    assert bad(run(cluster, full=True)) == {("CRIT", "ping", server.name, 0)}
