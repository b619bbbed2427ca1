"""The probe: parsers by cases (command, output, fact), and the program as it is sent to a host."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.node import leases, probe
from orchestrator.node.failure import NodeError
from orchestrator.planning.facts import parse_facts
from tests.cluster.node.conftest import find_python
from tests.cluster.node.host import alive, wait_until

CASES = json.loads((Path(__file__).parent / "probe_cases.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("GLM2_SHARED", str(ROOT.parent / "shared")))


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_parsers(case: Dict[str, Any]) -> None:
    assert run_parser(case["command"], case["output"]) == case["fact"]


def run_parser(command: str, output: str) -> Any:
    if command.startswith("hccn_tool"):
        return probe.parse_hccn_ip(output)
    if command == "cat /etc/hccn.conf":
        return {str(device): ip for device, ip in probe.parse_hccn_conf(output).items()}
    if command == "ls site-packages":
        return probe.parse_dist_info(output)
    key = {"version.info": "Version", "ascend_toolkit_install.info": "version"}
    return probe.parse_info(output, key[command.split("/")[-1]])


def sample(name: str) -> str:
    path = SHARED / "fixtures" / "device_tools" / name
    if not path.exists():
        pytest.skip(f"no {name}: set GLM2_SHARED to the folder of the shared fixtures")
    return path.read_text(encoding="utf-8")


def test_real_outputs() -> None:
    assert probe.parse_hccn_ip(sample("hccn_tool_ip_ok.txt")) == "10.10.0.10"
    assert probe.parse_info(sample("version.info_driver.txt"), "Version") == "23.0.7"
    assert probe.parse_info(sample("version.info_firmware.txt"), "Version") == "7.1.0.11.220"
    assert probe.parse_info(sample("ascend_toolkit_install.info"), "version") == "7.0.T10"
    assert probe.parse_hccn_conf(sample("hccn.conf.excerpt_real_910B1")) == {
        0: "29.1.137.205",
        7: "29.1.170.143",
    }
    assert probe.parse_hccn_conf(sample("hccn.conf"))[4] == "192.1.27.7"
    assert len(probe.parse_hccn_conf(sample("hccn.conf"))) == 8


def test_no_other_output_of_the_tools_has_a_device_ip() -> None:
    sample("hccn_tool_ip_not_set.txt")
    for path in (SHARED / "fixtures" / "device_tools").glob("*.txt"):
        if path.name != "hccn_tool_ip_ok.txt":
            assert probe.parse_hccn_ip(path.read_text(encoding="utf-8")) is None, path.name


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    assert len(probe.one_line(text)) <= 200
    assert probe.one_line(text).isprintable()
    probe.parse_hccn_ip(text)
    probe.parse_hccn_ip(f"ipaddr:{text}")
    probe.parse_hccn_conf(f"address_0={text}")
    probe.parse_info(text, "version")


@given(st.ip_addresses())
def test_addresses_of_both_families(address: Any) -> None:
    usable = not (address.is_unspecified or address.is_loopback or address.is_multicast)
    expected = str(address) if usable else None
    assert probe.parse_hccn_ip(f"ipaddr:{address}\nnetmask:255.255.255.0\n") == expected


class Machine:
    """A host with tools and files of its own; what it lacks it does not have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workdir = root / "work"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.environ = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "GLM2_HCCN_CONF": str(root / "hccn.conf"),
            "GLM2_ASCEND_ROOT": str(root / "Ascend"),
        }

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def hccn_tool(self, script: str) -> None:
        tool = self.bin / "hccn_tool"
        tool.write_text("#!/bin/bash\n" + script)
        tool.chmod(0o755)

    def probe(self, *options: str, python: str = sys.executable) -> Dict[str, Any]:
        program = Path(probe.__file__).read_bytes()
        argv = [python, "-", "--workdir", str(self.workdir), *options]
        done = subprocess.run(
            argv, input=program, stdout=subprocess.PIPE, env=self.environ, timeout=60, check=True
        )
        answer: Dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


TOOL = """
[ "$1 $3 $4" = "-i -ip -g" ] || exit 9
case $2 in
  5) echo 'Get ipconf failed, because no ip was preset there!'; exit 1;;
  6) echo 'error: 10.0.0.1: bad device'; exit 0;;
  7) echo 'ipaddr:10.0.0.7'; exit 3;;
  *) echo "ipaddr:10.0.0.1$2"; echo 'netmask:255.255.255.0';;
esac
"""


def test_device_ips_from_the_tool(machine: Machine) -> None:
    machine.hccn_tool(TOOL)
    machine.write("hccn.conf", "address_0=192.0.2.1\naddress_5=192.0.2.5\n")
    facts = machine.probe("--devices", "0,1,5,6,7")
    assert facts["device_ips"] == {"0": "10.0.0.10", "1": "10.0.0.11"}
    assert facts["device_ip_source"] == "hccn_tool"
    assert facts["device_ip_errors"] == {
        "5": "hccn_tool ended with status 1: Get ipconf failed, because no ip was preset there!",
        "6": "hccn_tool ended with status 0: error: 10.0.0.1: bad device",
        "7": "hccn_tool ended with status 3: ipaddr:10.0.0.7",
    }


def test_device_ips_from_the_file(machine: Machine) -> None:
    machine.write("hccn.conf", "address_0=192.0.2.1\naddress_1=*.*.*.*\n")
    facts = machine.probe("--devices", "0,1")
    assert facts["device_ips"] == {"0": "192.0.2.1"}
    assert facts["device_ip_source"] == "hccn.conf"
    assert list(facts["device_ip_errors"]) == ["1"]
    assert facts["device_ip_errors"]["1"].endswith("hccn.conf: no valid address_1")


def test_a_host_without_device_tools(machine: Machine) -> None:
    facts = machine.probe("--devices", "0")
    assert (facts["device_ips"], facts["device_ip_source"]) == ({}, None)
    assert "No such file" in facts["device_ip_errors"]["0"]
    facts = machine.probe("--devices", "0", "--no-device-tools")
    assert (facts["device_ips"], facts["device_ip_errors"]) == ({}, {})


def test_the_tool_beside_the_driver_is_found(machine: Machine) -> None:
    """Not on the PATH of a command over SSH."""
    machine.hccn_tool("echo ipaddr:10.0.0.9")
    tools = machine.root / "Ascend" / "driver" / "tools"
    tools.mkdir(parents=True)
    (machine.bin / "hccn_tool").rename(tools / "hccn_tool")
    assert machine.probe("--devices", "0")["device_ips"] == {"0": "10.0.0.9"}


def test_a_tool_that_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with what it started; the other devices keep their answers."""
    pids = machine.root / "pids"
    machine.hccn_tool(
        f"[ $2 = 1 ] && echo ipaddr:10.0.0.1 && exit; sleep 600 & echo $! >> {pids}; wait"
    )
    monkeypatch.setattr(probe, "TOOL_TIMEOUT_S", 3.0)
    monkeypatch.setenv("PATH", machine.environ["PATH"])
    ips, source, errors = probe.device_ips([0, 1, 2], str(machine.root / "Ascend"))
    assert (ips, source) == ({1: "10.0.0.1"}, "hccn_tool")
    assert errors == dict.fromkeys((0, 2), "hccn_tool: no answer within 3 s")
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # it was killed


def test_versions(machine: Machine) -> None:
    machine.write("Ascend/driver/version.info", "Version=23.0.7\npackage_version=1\n")
    machine.write("Ascend/firmware/version.info", "Version=7.1.0.11.220\n")
    machine.write("toolkit/ascend_toolkit_install.info", "package_name=x\nversion=8.0.RC1\n")
    machine.environ["ASCEND_TOOLKIT_HOME"] = str(machine.root / "toolkit")
    machine.write("site/mindspore_ascend-2.2.14.dist-info/METADATA", "")
    machine.environ["PYTHONPATH"] = str(machine.root / "site")
    machine.write("site/mindspore/__init__.py", "raise SystemExit('imported')")
    facts = machine.probe()
    found = {key: facts[key] for key in ("driver", "firmware", "cann", "mindspore")}
    assert found == {
        "driver": "23.0.7",
        "firmware": "7.1.0.11.220",
        "cann": "8.0.RC1",
        "mindspore": "2.2.14",
    }
    assert facts["mindspore_error"] is None


def test_no_mindspore(tmp_path: Path) -> None:
    version, error = probe.find_mindspore([str(tmp_path), str(tmp_path / "absent")])
    assert version is None
    assert error == f"no MindSpore is installed for {sys.executable}"


def test_workdir(machine: Machine) -> None:
    facts = machine.probe()["workdir"]
    assert (facts["exists"], facts["writable"], facts["error"]) == (False, True, None)
    assert facts["free_bytes"] > 0
    machine.workdir.mkdir()
    facts = machine.probe()["workdir"]
    assert facts["path"] == str(machine.workdir)
    assert (facts["exists"], facts["writable"]) == (True, True)
    assert list(machine.workdir.iterdir()) == []
    machine.workdir = Path("/proc/glm2")
    facts = machine.probe()["workdir"]
    assert (facts["exists"], facts["writable"]) == (False, False)
    assert facts["error"].startswith("/proc: ")
    machine.write("file", "")
    machine.workdir = machine.root / "file" / "runs"
    facts = machine.probe()["workdir"]
    assert facts["writable"] is False
    assert facts["error"] == f"{machine.root / 'file'}: Not a directory"


@pytest.fixture
def taken() -> Iterator[List[int]]:
    """Two neighbouring ports that somebody listens on, on one address only."""
    sockets: List[socket.socket] = []
    for base in range(20000, 30000, 2):
        sockets = [socket.socket(), socket.socket()]
        try:
            for offset, listener in enumerate(sockets):
                listener.bind(("127.0.1.1", base + offset))
                listener.listen()
        except OSError:
            for listener in sockets:
                listener.close()
            continue
        break
    yield [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()


def test_free_port(machine: Machine, taken: List[int]) -> None:
    found = machine.probe("--port", str(taken[0]))["free_port"]
    assert found > taken[1]
    assert machine.probe()["free_port"] is None
    assert probe.free_port(65536, str(machine.workdir)) is None


def test_a_port_that_a_run_has_leased_is_not_free(machine: Machine, taken: List[int]) -> None:
    """Its scheduler does not listen before MindSpore is imported."""
    folder = machine.workdir / "leases"
    folder.mkdir(parents=True)
    first = machine.probe("--port", str(taken[1]))["free_port"]
    lease = leases.take_lease(str(machine.workdir), f"port_{first}", {"run_id": "r1"})
    assert machine.probe("--port", str(first))["free_port"] > first
    with pytest.raises(NodeError, match=f"port_{first} is held by run r1") as refused:
        leases.take_lease(str(machine.workdir), f"port_{first}", {"run_id": "r2"})
    assert refused.value.code == "port-taken"
    lease.release()
    assert machine.probe("--port", str(first))["free_port"] == first


@pytest.mark.parametrize("version", ["own", "3.7", "3.8", "3.13"])
def test_the_answer_on_every_python(machine: Machine, version: str) -> None:
    python = sys.executable if version == "own" else find_python(version)
    if not python:
        pytest.skip(f"no Python {version} on the PATH or in GLM2_TEST_PYTHONS")
    machine.hccn_tool(TOOL)
    facts = machine.probe("--devices", "0", "--port", "8118", python=python)
    assert facts["schema"] == 1
    assert facts["hostname"] == socket.gethostname()
    assert facts["uid"] == os.getuid()
    assert facts["cpu_count"] == os.cpu_count()
    assert facts["device_ips"] == {"0": "10.0.0.10"}
    assert facts["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if version != "own":
        assert facts["python"].startswith(version + ".")
    for key in ("wall", "mono", "shm_free_bytes", "free_port"):
        assert facts[key] > 0
    assert set(facts) == FIELDS
    read = parse_facts(facts, host="node0")  # what the planner makes of it
    assert (read.hostname, read.device_ips) == (facts["hostname"], {0: "10.0.0.10"})
    assert read.workdir is not None
    assert read.workdir.writable is True


FIELDS = {
    *("schema", "hostname", "fqdn", "wall", "mono", "python", "python_executable", "mindspore"),
    *("mindspore_error", "cann", "driver", "firmware", "device_ips", "device_ip_source"),
    *("device_ip_errors", "workdir", "shm_free_bytes", "free_port", "uid", "user", "boot_id"),
    "cpu_count",
}


@pytest.mark.parametrize("options", [[], ["--workdir", "/w", "--devices", "a"], ["--workdir"]])
def test_a_wrong_command_line(options: List[str]) -> None:
    done = subprocess.run(
        [sys.executable, probe.__file__, *options], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"usage:" in done.stderr
