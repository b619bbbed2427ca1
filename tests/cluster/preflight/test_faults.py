"""One fault of each kind on a loopback cluster of three "Ascend" servers: the preflight names
exactly that fault, on that host, and nothing else.

Not run on hardware: the device tools are stand-ins (``ascend.py``).
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Callable, Iterator, Optional, Sequence, Tuple

import pytest

from orchestrator.engine.hosts import connected
from orchestrator.engine.preflight import Result, preflight
from orchestrator.inventory import DeviceIp
from orchestrator.preflight.catalogue import CHECKS
from orchestrator.preflight.findings import bad_hosts, exit_status
from tests.cluster.preflight.ascend import (
    DATA,
    DEVICES,
    Ascend,
    Server,
    ecc,
    health,
    job,
    npu_table,
    tls,
)
from tests.cluster.sshd import SSHD

Expected = Tuple[str, str, Optional[int], Optional[int]]
"""Status, check, host (0 to 2; None: nobody's), device."""


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


@dataclass(frozen=True)
class Fault:
    """A fault of the second of three hosts, what must be found, and words of the evidence."""

    name: str
    inject: Callable[[Server], None]
    found: Sequence[Expected]
    evidence: str
    remedy: str = ""


def one(status: str, check: str, device: Optional[int] = None) -> Sequence[Expected]:
    return [(status, check, 1, device)]


FAULTS = (
    Fault(
        "unhealthy device in the table",
        lambda s: s.npus(health={4: "Alarm"}),
        one("CRIT", "npu-health", 4),
        "health Alarm",
        "npu-smi info -t health -i 4",
    ),
    Fault(
        "unhealthy device with its code",
        lambda s: s.say("npu-smi info -t health -i 0", health("Alarm", "0x80e18402", "L2 fault")),
        one("CRIT", "npu-health", 0),
        "health Alarm: 0x80e18402: L2 fault",
    ),
    Fault(
        "warning of a device",
        lambda s: s.npus(health={0: "Warning"}),
        one("WARN", "npu-health", 0),
        "health Warning",
    ),
    Fault(
        "health that nobody knows",
        lambda s: s.npus(health={0: "Fine"}),
        one("WARN", "tool-output", 0),
        "unknown health 'Fine'",
    ),
    Fault(
        "missing device",
        lambda s: s.npus(devices=(0,)),
        one("CRIT", "npu-present", 4),
        "device 4 is missing: npu-smi lists 0",
    ),
    Fault(
        "driver down",
        lambda s: s.say("npu-smi info", "dcmi module initialize failed. ret is -8005\n"),
        one("CRIT", "npu-present"),
        "ret is -8005",
    ),
    Fault(
        "foreign process",
        lambda s: s.npus(processes={4: (4242, "python", 29631)}, held={4: 29631}),
        one("CRIT", "npu-processes", 4),
        "'python' (pid 4242) holds 29631 MB",
        "kill 4242",
    ),
    Fault(
        "process without a name",
        lambda s: s.npus(processes={0: (4242, "", 150)}, held={0: 150}),
        one("CRIT", "npu-processes", 0),
        "a process without a name (pid 4242)",
    ),
    Fault(
        "memory held by nobody",
        lambda s: s.npus(held={0: 29631}),
        one("CRIT", "npu-memory", 0),
        "29631 of 32768 MB held, by no process seen",
    ),
    Fault(
        "some memory held by nobody",
        lambda s: s.npus(held={0: 4096}),
        one("WARN", "npu-memory", 0),
        "4096 of 32768 MB held",
    ),
    Fault(
        "ECC errors of two bits",
        lambda s: s.say("npu-smi info -t ecc -i 0", ecc(HBM_Double_Bit_Error_Count=2)),
        one("CRIT", "npu-ecc", 0),
        "HBM Double Bit Error Count 2",
    ),
    Fault(
        "ECC errors that were corrected",
        lambda s: s.say("npu-smi info -t ecc -i 0", ecc(HBM_Single_Bit_Error_Count=7)),
        one("WARN", "npu-ecc", 0),
        "HBM Single Bit Error Count 7",
    ),
    Fault(
        "link down",
        lambda s: s.nic(4, "link", "link status: DOWN\n"),
        one("CRIT", "link", 4),
        "DOWN",
        "hccn_tool -i 4 -link_stat -g",
    ),
    Fault(
        "net_health fault",
        lambda s: s.nic(0, "net_health", "net health status: Fault\n"),
        one("CRIT", "net-health", 0),
        "Fault",
    ),
    Fault(
        "net_health init",
        lambda s: s.nic(0, "net_health", "net health status: Init\n"),
        one("WARN", "net-health", 0),
        "Init",
    ),
    Fault(
        "no gateway",
        lambda s: s.nic(0, "gateway", "Get gateway failed, because no gateway was preset there!\n"),
        one("WARN", "gateway", 0),
        "no gateway",
        "hccn_tool -i 0 -gateway -s",
    ),
    Fault(
        "no netdetect",
        lambda s: s.nic(0, "netdetect", "netdetect address: 0.0.0.0\n"),
        one("WARN", "netdetect", 0),
        "no netdetect",
        "hccn_tool -i 0 -netdetect -s",
    ),
    Fault(
        "no device IP",
        lambda s: s.nic(0, "ip", "Get ipconf failed, because no ip was preset there!\n"),
        one("CRIT", "device-ip", 0),
        "no ip was preset there",
    ),
    Fault(
        "TLS differs",
        lambda s: s.nic(4, "tls", tls(4, on=True)),
        one("CRIT", "tls", 4),
        "5 NICs with TLS off, 127.0.1.2 device 4: on",
        "hccn_tool -i 4 -tls -s enable 0",
    ),
    Fault(
        "driver differs",
        lambda s: s.write("Ascend/driver/version.info", "Version=22.0.4\n"),
        one("CRIT", "driver"),
        "2 hosts driver 23.0.7, 127.0.1.2: 22.0.4",
    ),
    Fault(
        "driver unknown",
        lambda s: s.remove("Ascend/driver/version.info"),
        one("WARN", "driver"),
        "2 hosts driver 23.0.7, 127.0.1.2: not found",
    ),
    Fault(
        "firmware differs",
        lambda s: s.write("Ascend/firmware/version.info", "Version=6.4.12\n"),
        one("CRIT", "firmware"),
        "2 hosts firmware 7.1.0.11.220, 127.0.1.2: 6.4.12",
    ),
    Fault(
        "CANN differs",
        lambda s: s.cann("6.3.RC2"),
        one("CRIT", "cann"),
        "2 hosts CANN 7.0.RC1, 127.0.1.2: 6.3.RC2",
    ),
    Fault(
        "MindSpore differs",
        lambda s: s.mindspore("2.0.0"),
        one("CRIT", "mindspore"),
        "2 hosts MindSpore 2.2.0, 127.0.1.2: 2.0.0",
    ),
    Fault(
        "Python differs",
        lambda s: s.identity(python="3.7.16"),
        one("WARN", "python"),
        "2 hosts Python 3.9.18, 127.0.1.2: 3.7.16",
    ),
    Fault(
        "code differs",
        lambda s: s.write("site/glm2/__init__.py", "patched = True\n"),
        one("WARN", "glm2-code"),
        "2 hosts glm2 with sha256",
    ),
    Fault(
        "unresolvable hostname",
        lambda s: s.identity(resolves=False),
        one("WARN", "hostname-resolves"),
        "'node2' is not resolved",
    ),
    Fault(
        "clock ahead",
        lambda s: s.identity(clock_s=300.0),
        one("CRIT", "clock"),
        "ahead of the median of 3 hosts",
    ),
    Fault(
        "clock a little behind",
        lambda s: s.identity(clock_s=-20.0),
        one("WARN", "clock"),
        "behind the median of 3 hosts",
    ),
    Fault(
        "disk full",
        lambda s: s.identity(disk_mib=1),
        one("CRIT", "workdir"),
        "is full: 1 MiB are free",
    ),
    Fault(
        "disk low", lambda s: s.identity(disk_mib=2048), one("WARN", "workdir"), "2.0 GiB free in"
    ),
    Fault(
        "workdir cannot be written",
        lambda s: (s.home / "workdir").rmdir() or s.write("workdir", "a file in its place"),
        one("CRIT", "workdir"),
        "cannot be written",
    ),
    Fault(
        "/dev/shm small",
        lambda s: s.identity(shm_mib=64),
        one("WARN", "shm"),
        "64 MiB are free in /dev/shm",
    ),
    Fault(
        "few open files",
        lambda s: s.identity(open_files=1024),
        one("WARN", "open-files"),
        "may open 1024 files",
    ),
    Fault(
        "dataset missing",
        lambda s: s.remove("data/train.json"),
        one("CRIT", "dataset"),
        f"{DATA}/train.json is missing (train_dataset.data_loader.dataset_dir)",
    ),
    Fault(
        "dataset differs",
        lambda s: s.write("data/train.json", "another content\n"),
        one("CRIT", "dataset"),
        "2 hosts /proc/self/cwd/data/train.json with 26 bytes",
    ),
    Fault(
        "vocabulary differs",
        lambda s: s.write("data/tokenizer.model", "The content of tokenizer.model\n"),
        one("CRIT", "vocabulary"),
        "tokenizer.model with",
    ),
    Fault(
        "checkpoint missing",
        lambda s: s.remove("data/glm2.ckpt"),
        one("CRIT", "checkpoint"),
        "glm2.ckpt is missing (load_checkpoint)",
    ),
    Fault(
        "checkpoint differs",
        lambda s: s.write("data/glm2.ckpt", "other weights\n"),
        one("CRIT", "checkpoint"),
        "glm2.ckpt with",
    ),
    Fault(
        "NIC in another subnet than its like",
        lambda s: s.nic(4, "ip", f"ipaddr:{s.ip(4)}\nnetmask:255.255.255.0\n"),
        one("WARN", "wiring", 4),
        "2 hosts with device 4 in 10.1.0.0/16, 127.0.1.2: 10.1.1.0/24",
    ),
    Fault(
        "output of npu-smi not understood",
        lambda s: s.say("npu-smi info", npu_table() + "Segmentation fault\n"),
        one("WARN", "tool-output"),
        "Segmentation fault",
    ),
    Fault(
        "output of hccn_tool not understood",
        lambda s: s.nic(0, "link", "link state: up and running\n"),
        one("WARN", "tool-output", 0),
        "it printed 'link state: up and running'",
    ),
    Fault(
        "npu-smi missing",
        lambda s: s.without_tool("npu-smi"),
        one("WARN", "tools"),
        "npu-smi is not found: devices, health, ECC, processes and memory are not checked",
    ),
    Fault(
        "hccn_tool missing",
        lambda s: s.without_tool("hccn_tool"),
        one("WARN", "tools"),
        "hccn_tool is not found",
    ),
    Fault(
        "Python missing",
        lambda s: (s.home.parent / "bin/glm2-python").unlink(),
        one("CRIT", "answers"),
        "cannot run",
    ),
)


def test_a_healthy_cluster(cluster: Ascend) -> None:
    """All is well, and every check was made but that of the scheduler's port, which needs one."""
    result = run(cluster)
    assert bad(result) == set()
    skipped = {f.check for f in result.findings if f.status == "SKIP"}
    assert skipped == {"scheduler-port"}
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
