"""Ascend servers that are none: real sshds, with stand-ins for the device tools.

``npu-smi`` and ``hccn_tool`` print what a file of the host says, in the tools' real formats. What
cannot differ between hosts of one machine (hostname, clock, room, limits, version of Python) comes
from a file, too, through the ``sitecustomize`` of the host's Python. Nothing here has run on
hardware.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple

import yaml

from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.transport.base import Transport
from orchestrator.worker_config import parse_config
from tests.cluster.sshd import Loopback

DEVICES = (0, 4)

# Every process of a host has the host's home as its working folder, so this is the same path on
# all hosts, with a content of its own on each.
DATA = "/proc/self/cwd/data"

_TOOL = """\
#!/bin/sh
file="$HOME/answers/${0##*/} $*"
[ -f "$file" ] || { echo "unknown command: $*"; exit 1; }
exec cat "$file"
"""

_PYTHON = """\
#!/bin/sh
cd "$HOME" || exit 1
export PYTHONPATH="$HOME/site" GLM2_ASCEND_ROOT="$HOME/Ascend" GLM2_HCCN_CONF="$HOME/hccn.conf"
exec {python} "$@"
"""

_SITE = """\
import json, os, platform, resource, socket, time

with open(os.path.join(os.environ["HOME"], "identity.json"), encoding="utf-8") as file:
    me = json.load(file)
real_time, real_lookup, real_statvfs = time.time, socket.getaddrinfo, os.statvfs
real_connect = socket.create_connection


def lookup(host, *arguments, **options):
    if host != me["hostname"]:
        return real_lookup(host, *arguments, **options)
    if not me["resolves"]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real_lookup("127.0.0.1", *arguments, **options)


def connect(address, *arguments, **options):
    if address[0] in me["walls"]:
        raise OSError(113, "No route to host")
    return real_connect(address, *arguments, **options)


def statvfs(path):
    mib = me["shm_mib"] if path == "/dev/shm" else me["disk_mib"]
    values = list(real_statvfs("/"))
    values[0] = values[1] = 1 << 20
    values[2] = values[3] = values[4] = mib
    return os.statvfs_result(values)


time.time = lambda: real_time() + me["clock_s"]
socket.gethostname = lambda: me["hostname"]
socket.getfqdn = lambda name="": me["hostname"]
socket.getaddrinfo = lookup
socket.create_connection = connect
os.statvfs = statvfs
resource.getrlimit = lambda what: (me["open_files"], 1 << 20)
platform.python_version = lambda: me["python"]
"""

_IDENTITY: Mapping[str, Any] = {
    "resolves": True,
    "walls": (),
    "clock_s": 0.0,
    "disk_mib": 200 << 10,
    "shm_mib": 16 << 10,
    "open_files": 65536,
    "python": "3.9.18",
}

_CONFIG = f"""\
train_dataset:
  data_loader: {{dataset_dir: {DATA}/train.json}}
  tokenizer: {{vocab_file: {DATA}/tokenizer.model}}
load_checkpoint: {DATA}/glm2.ckpt
"""


def job() -> Job:
    """A job that reads a dataset, a vocabulary and weights."""
    return Job("preflight", "finetune", parse_config(_CONFIG, "job.yaml", "job.yaml"))


class Server:
    """One host: ``healthy`` makes all well, everything else makes something bad."""

    def __init__(self, cluster: Loopback, host: Host, number: int) -> None:
        self._loopback = cluster
        self.number = number
        self.home = cluster.server(host).folder / "home"
        python = cluster.path_dir(host) / "glm2-python"
        self.host = replace(
            host,
            devices=DEVICES,
            device_target="Ascend",
            workdir=str(self.home / "workdir"),
            python=str(python),
        )
        self.name = host.name
        cluster.add_tool(host, python.name, _PYTHON.format(python=sys.executable))

    def healthy(self) -> None:
        shutil.rmtree(self.home)
        for folder in ("answers", "data", "workdir"):
            (self.home / folder).mkdir(parents=True)
        for tool in ("npu-smi", "hccn_tool"):
            self._loopback.add_tool(self.host, tool, _TOOL)
        self.identity()
        self.write("site/sitecustomize.py", _SITE)
        self.write("site/mindspore/__init__.py", "")
        self.mindspore("2.2.0")
        self.write("site/glm2/__init__.py", "")
        self.write("Ascend/driver/version.info", "Version=23.0.7\n")
        self.write("Ascend/firmware/version.info", "Version=7.1.0.11.220\n")
        self.cann("7.0.RC1")
        for name in ("train.json", "tokenizer.model", "glm2.ckpt"):
            self.write(f"data/{name}", f"the content of {name}\n")
        self.npus()
        for device in DEVICES:
            self.say(f"npu-smi info -t health -i {device}", health())
            self.say(f"npu-smi info -t ecc -i {device}", ecc())
            self.nic(device, "ip", f"ipaddr:{self.ip(device)}\nnetmask:255.255.0.0\n")
            self.nic(device, "link", "link status: UP\n")
            self.nic(device, "net_health", "net health status: Success\n")
            self.nic(device, "gateway", f"default gateway:10.{subnet(device)}.0.1, Iface:eth0\n")
            self.nic(device, "netdetect", f"netdetect address: 10.{subnet(device)}.0.1\n")
            self.nic(device, "tls", tls(device, on=False))

    def ip(self, device: int) -> str:
        return f"10.{subnet(device)}.{device // 4}.{10 + self.number}"

    def identity(self, **changes: Any) -> None:
        """Hostname, clock, room, limits, as this host shall see them."""
        text = json.dumps({**_IDENTITY, "hostname": f"node{self.number}", **changes})
        self.write("identity.json", text)

    def write(self, path: str, text: str) -> None:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        (self.home / path).unlink()

    def say(self, command: str, text: str) -> None:
        """What a tool prints from now on."""
        self.write(f"answers/{command}", text)

    def nic(self, device: int, topic: str, text: str) -> None:
        self.say(f"hccn_tool -i {device} -{topic} -g", text)

    def npus(self, **changes: Any) -> None:
        self.say("npu-smi info", npu_table(**changes))

    def mindspore(self, version: str) -> None:
        for old in (self.home / "site").glob("mindspore-*.dist-info"):
            old.rmdir()
        (self.home / f"site/mindspore-{version}.dist-info").mkdir(parents=True)

    def cann(self, version: str) -> None:
        folder = "Ascend/ascend-toolkit/latest"
        self.write(f"{folder}/ascend_toolkit_install.info", f"version={version}\n")

    def pings(self, device: int, address: str, lost: int = 0) -> None:
        command = f"hccn_tool -i {device} -ping -g address {address}"
        self.say(command, ping(device, address, lost))

    def without_tool(self, name: str) -> None:
        (self._loopback.path_dir(self.host) / name).unlink()


class Ascend:
    """A cluster of such hosts."""

    transports: Mapping[str, Transport]
    """Connections that a module of tests shares."""

    def __init__(self, stack: ExitStack, folder: Path, count: int) -> None:
        self.loopback = stack.enter_context(Loopback(folder, count))
        self.servers = [
            Server(self.loopback, host, number)
            for number, host in enumerate(self.loopback.hosts, start=1)
        ]

    @property
    def hosts(self) -> Tuple[Host, ...]:
        return tuple(server.host for server in self.servers)

    def healthy(self) -> None:
        for server in self.servers:
            server.healthy()
        for device in DEVICES:
            self.pings(device)

    def pings(self, device: int, *, deaf: Optional[Server] = None) -> None:
        """All NICs of an index answer each other, but none answers to or from the ``deaf``."""
        for one in self.servers:
            for other in self.servers:
                if one is not other:
                    lost = 3 if deaf in (one, other) else 0
                    one.pings(device, other.ip(device), lost)

    def inventory(self, **top: object) -> Path:
        path = self.loopback.inventory(hosts=self.hosts, **top)
        text = yaml.safe_load(path.read_text())
        for settings in text["hosts"].values():
            settings["devices"] = ",".join(map(str, settings["devices"]))
        path.write_text(yaml.safe_dump(text, sort_keys=False))
        return path


def subnet(device: int) -> int:
    return device % 4 + 1


def health(status: str = "OK", code: str = "NA", information: str = "NA") -> str:
    return (
        f" Health Status                  : {status}\n"
        f" Error Code                     : {code}\n"
        f" Error Information              : {information}\n"
    )


def ecc(**counts: int) -> str:
    """``ecc(HBM_Double_Bit_Error_Count=1)``"""
    names = [
        f"{memory} {width} Bit {what}"
        for memory in ("DDR", "HBM")
        for what in ("Error Count", "Aggregate Total Err Cnt", "Isolated Pages Count")
        for width in ("Single", "Double")
    ]
    lines = ["NPU ID                                   : 0", "Chip Count : 1", ""]
    lines += [f"{name:<40} : {counts.get(name.replace(' ', '_'), 0)}" for name in names]
    return "\n".join([*lines, "Chip ID                                  : 0", ""])


def tls(device: int, *, on: bool) -> str:
    return (
        f"dev_id:{device}, tls switch[{int(on)}](0:disable, 1:enable), "
        "tls preconfigured[1](0:non-preset, 1:preset), tls alarm time threshold[60]days\n"
    )


def ping(device: int, address: str, lost: int) -> str:
    """Three packets, of which the first ``lost`` ones do not come back."""
    lines = [f"device {device} PING {address}"]
    for seq in range(3):
        well = seq >= lost
        lines.append(f"recv seq={seq},time=0.05{seq}000ms" if well else f"recv time out seq={seq}")
    share = f"{100 * lost / 3:.2f}%"
    lines.append(f"3 packets transmitted, {3 - lost} received, {share} packet loss")
    return "\n".join(lines) + "\n"


def npu_table(
    devices: Sequence[int] = DEVICES,
    health: Mapping[int, str] = {},
    held: Mapping[int, int] = {},
    processes: Mapping[int, Tuple[int, str, int]] = {},
) -> str:
    """``npu-smi info`` of 910A boards. ``held``: MB of device memory; ``processes``: number, name
    and memory of the process on a device."""
    wide = "+===========================+===============+" + "=" * 52 + "+"
    thin = wide.replace("=", "-")
    rows = [
        "+" + "-" * 96 + "+",
        f"| {'npu-smi 23.0.5                   Version: 23.0.5':<94} |",
        thin,
        _row("NPU   Name", "Health", "Power(W)    Temp(C)           Hugepages-Usage(page)"),
        _row("Chip", "Bus-Id", "AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)"),
        wide,
    ]
    for device in devices:
        used = held.get(device, 0)
        rows += [
            _row(
                f"{device}     910ProB",
                health.get(device, "OK"),
                "73.1        37                0    / 0",
            ),
            _row("0", "0000:61:00.0", f"0           920  / 13553      {used:<5}/ 32768"),
            wide,
        ]
    rows += [thin, _row("NPU     Chip", "Process id", "Process name | Process memory(MB)"), wide]
    for device in devices:
        if device in processes:
            pid, name, memory = processes[device]
            rows.append(_row(f"{device}       0", str(pid), f"{name} | {memory}"))
        else:
            rows.append(f"| {f'No running processes found in NPU {device}':<94} |")
        rows.append(wide)
    return "\n".join(rows) + "\n"


def _row(first: str, second: str, third: str) -> str:
    return f"| {first:<25} | {second:<13} | {third:<50} |"
