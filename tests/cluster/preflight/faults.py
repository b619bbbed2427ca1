"""Faults that can be injected into a stand-in "Ascend" server, and what must be found then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple

from tests.cluster.preflight.ascend import (
    DATA,
    Server,
    ecc,
    health,
    npu_table,
    tls,
)

Expected = Tuple[str, str, Optional[int], Optional[int]]
"""Status, check, host (0 to 2; None: nobody's), device."""


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
