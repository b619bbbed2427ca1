"""The probe: parsers by cases (output, fact), and the whole program with stand-in device tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.node import probe
from orchestrator.planning.facts import parse_facts

SHARED = Path(os.environ.get("GLM2_SHARED", Path(__file__).parents[4] / "shared"))
PROGRAM = Path(probe.__file__).read_bytes()


@pytest.mark.parametrize(
    ("output", "address"),
    [
        ("ipaddr:10.20.0.7\nnetmask:255.255.255.0\n", "10.20.0.7"),
        ("ipaddr: 10.20.0.7 \r\n", "10.20.0.7"),
        ("ipaddr:fd00::7\nnetmask:64\n", "fd00::7"),
        ("Get ipconf failed, because no ip was preset there!\n", None),
        ("[ERROR] drv: ipaddr:10.1.1.1 is busy\n", None),
        ("error: device:3 not found\n", None),
        ("ipaddr:-.-.-.-\n", None),
        ("ipaddr:0.0.0.0\n", None),
        ("ipaddr:127.0.0.1\n", None),
        ("ipaddr:\n", None),
        ("", None),
    ],
)
def test_hccn_ip(output, address):
    assert probe.parse_hccn_ip(output) == address


def test_hccn_conf():
    text = "address_0=10.1.0.1\nnetmask_0=255.0.0.0\n # address_1=10.1.0.2\naddress_2=masked\n"
    assert probe.parse_hccn_conf(text + "address_10 = 10.1.0.9") == {0: "10.1.0.1", 10: "10.1.0.9"}


def test_info_files():
    assert probe.parse_info("package=x\nVersion=23.0.7\n", "version") == "23.0.7"
    assert probe.parse_info("version=\nversion_dir=7", "version") is None


@pytest.mark.parametrize(
    ("folder", "version"),
    [
        ("mindspore-2.7.0.dist-info", "2.7.0"),
        ("mindspore_ascend-2.2.0.dist-info", "2.2.0"),
        ("mindspore_lite-2.7.0.dist-info", None),
        ("mindspore", None),
    ],
)
def test_mindspore_distributions(folder, version):
    assert probe.parse_dist_info(folder) == version


def test_recorded_outputs():
    tools = SHARED / "fixtures" / "device_tools"
    if not tools.is_dir():
        pytest.skip("recorded outputs of device tools are not at hand (GLM2_SHARED)")

    def read(name: str) -> str:
        return (tools / name).read_text(errors="replace")

    assert probe.parse_hccn_ip(read("hccn_tool_ip_ok.txt")) == "10.10.0.10"
    assert probe.parse_hccn_ip(read("hccn_tool_ip_not_set.txt")) is None
    assert sorted(probe.parse_hccn_conf(read("hccn.conf"))) == list(range(8))
    assert probe.parse_info(read("version.info_driver.txt"), "version") == "23.0.7"
    assert probe.parse_info(read("ascend_toolkit_install.info"), "version") == "7.0.T10"


@pytest.fixture
def host(tmp_path):
    """Runs the probe as the engine does, on a host with the given ``hccn_tool``."""

    def run(tool: str = "", conf: str = "", *, workdir: str = "", devices: str = "0,1,2"):
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        if tool:
            (tools / "hccn_tool").write_text("#!/bin/sh\n" + tool)
            (tools / "hccn_tool").chmod(0o755)
        (tmp_path / "hccn.conf").write_text(conf)
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "GLM2_HCCN_CONF": str(tmp_path / "hccn.conf"),
            "GLM2_ASCEND_ROOT": str(tmp_path / "Ascend"),
        }
        arguments = ["--devices", devices, "--workdir", workdir or str(tmp_path), "--port", "21000"]
        done = subprocess.run(
            [sys.executable, "-", *arguments], input=PROGRAM, capture_output=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_tool_is_believed_before_the_file(host):
    found = host("echo ipaddr:10.9.0.$2", "address_0=10.1.0.1\naddress_1=10.1.0.2")
    assert found["device_ips"] == {"0": "10.9.0.0", "1": "10.9.0.1", "2": "10.9.0.2"}
    assert found["device_ip_source"] == "hccn_tool"


def test_the_file_where_there_is_no_tool(host):
    found = host(conf="address_0=10.1.0.1\naddress_1=10.1.0.2")
    assert found["device_ips"] == {"0": "10.1.0.1", "1": "10.1.0.2"}
    assert found["device_ip_source"] == "hccn.conf"
    assert list(found["device_ip_errors"]) == ["2"]


def test_a_device_without_address_says_why(host):
    tool = 'if [ $2 = 1 ]; then echo "Get ipconf failed: no ip"; exit 1; fi\necho ipaddr:10.9.0.$2'
    found = host(tool)
    assert sorted(found["device_ips"]) == ["0", "2"]
    assert "no ip" in found["device_ip_errors"]["1"]


def test_workdir_and_the_planner_reads_the_answer(host, tmp_path):
    found = host(workdir=str(tmp_path / "new" / "deep"))
    facts = parse_facts(found, host="h")
    assert facts.workdir is not None
    assert (facts.workdir.exists, facts.workdir.writable) == (False, True)
    assert not (tmp_path / "new").exists()
    assert facts.free_port is not None
    assert facts.free_port >= 21000
    (tmp_path / "file").write_text("")
    blocked = parse_facts(host(workdir=str(tmp_path / "file" / "x")), host="h").workdir
    assert blocked is not None
    assert blocked.writable is False
    assert blocked.error


def test_versions_of_an_ascend_installation(host, tmp_path):
    driver = tmp_path / "Ascend" / "driver"
    driver.mkdir(parents=True)
    (driver / "version.info").write_text("Version=23.0.7\n")
    assert host()["driver"] == "23.0.7"
