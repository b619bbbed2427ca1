"""``glm2-orch ranktable``: options, files and exit statuses; a stand-in hccn_tool on the PATH."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.planning.ranktable import host_table, merge

HCCN_TOOL = """#!/bin/sh
echo "ipaddr:192.168.$2.7"
echo "netmask:255.255.255.0"
"""


@pytest.fixture
def run(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "hccn_tool").write_text(HCCN_TOOL)
    (tools / "hccn_tool").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", "ranktable", *argv],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def tables(tmp_path):
    """Three single-server tables in the current folder."""
    for number in (9, 10, 2):
        ips = {d: f"10.{d % 4}.{d // 4}.{number}" for d in range(8)}
        text = host_table(f"10.0.0.{number}", ips).to_json()
        (tmp_path / f"hccl_{number}.json").write_text(text)
    return ["hccl_9.json", "hccl_10.json", "hccl_2.json"]


def test_generate_on_this_host(run, tmp_path):
    done = run("generate", "--device_num", "[0, 2]", "--server_ip", "10.0.0.1", "--out", "t.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "t.json").read_text())
    (server,) = table["server_list"]
    assert server["server_id"] == "10.0.0.1"
    assert server["device"] == [
        {"device_id": "0", "device_ip": "192.168.0.7", "rank_id": "0"},
        {"device_id": "1", "device_ip": "192.168.1.7", "rank_id": "1"},
    ]
    assert run("check", "t.json").returncode == 0


def test_generate_for_visible_devices(run):
    done = run("generate", "--device_num", "[0,2)", "--visible_devices", "4,6", "--server_ip", "h")
    devices = json.loads(done.stdout)["server_list"][0]["device"]
    assert [d["device_id"] for d in devices] == ["4", "6"]
    done = run("generate", "--device_num", "[0,3)", "--visible_devices", "4,6", "--server_ip", "h")
    assert done.returncode == 2
    assert "--visible_devices lists 2" in done.stderr


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        (["--device_num", "[0,8)"], range(8)),
        (["--device_num", "[0,8]"], range(8)),
        (["--device_num", " [ 0 , 8 ) "], range(8)),
        (["--device-num", "[4, 8)"], range(4, 8)),
        (["--device_num", "[8,16)"], range(8, 16)),
        (["--device_num", "0,1,4,5"], [0, 1, 4, 5]),
        (["--visible_devices", "4,5,6,7"], range(4, 8)),
        (["--visible-devices", "0,2,4,6", "--device_num", "[1,3)"], [2, 4]),
    ],
)
def test_generate_takes_every_range_and_check_finds_no_error(run, tmp_path, options, devices):
    done = run("generate", *options, "--server_ip", "10.0.0.1", "--out", "t.json")
    assert done.returncode == 0, done.stderr
    (server,) = json.loads((tmp_path / "t.json").read_text())["server_list"]
    assert [(int(d["device_id"]), int(d["rank_id"])) for d in server["device"]] == [
        (device, rank) for rank, device in enumerate(devices)
    ]
    assert run("check", "t.json").returncode == 0
    assert ("warning RT043" in done.stderr) == (8 in devices)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--device_num", "[2,6)"], 3, "RT042 devices {2,3,4,5}"),
        (["--device_num", "[0,17)"], 3, "RT040 `device_id` 16 does not exist"),
        (["--device_num", "[8,8)"], 2, "is empty"),
        (["--device_num", "all"], 2, "is not a device range"),
        (["--out", "t.txt"], 3, "does not end in .json"),
    ],
)
def test_what_hccl_would_refuse_is_not_generated(run, tmp_path, options, status, said):
    done = run("generate", "--server_ip", "10.0.0.1", *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert not (tmp_path / "t.txt").exists()


def test_generate_for_an_inventory(run, tmp_path):
    (tmp_path / "inv.yaml").write_text(
        "defaults: {connection: local, device_target: Ascend, devices: '[0,2)', workdir: /tmp}\n"
        "hosts: {a: {server_id: '9'}}\n"
    )
    done = run("generate", "--inventory", "inv.yaml")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["server_list"][0]["server_id"] == "9"
    assert run("generate", "--inventory", "inv.yaml", "--server_ip", "x").returncode == 2
    (tmp_path / "t.json").write_text(done.stdout)
    assert run("check", "t.json", "--against-hosts", "inv.yaml").returncode == 0
    (tmp_path / "t.json").write_text(done.stdout.replace("192.168.1.7", "192.168.1.8"))
    drifted = run("check", "t.json", "--against-hosts", "inv.yaml")
    assert drifted.returncode == 3
    assert "RT090" in drifted.stdout


def test_drift_is_looked_for_on_the_hosts_that_answer(run, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # bound, and nobody listens
        (tmp_path / "inv.yaml").write_text(
            "defaults: {device_target: Ascend, devices: '[0,1)', workdir: /tmp}\n"
            "groups: {spares: {hosts: s}, workers: {hosts: [a, b]}}\n"
            "hosts:\n"
            "  a: {server_id: '1', connection: local}\n"
            f"  b: {{address: 127.0.0.1, server_id: '2', python: py, ssh: {{port: {port}}}}}\n"
            "  s: {server_id: '3', connection: local}\n"
        )
        ips = {"1": "192.168.0.7", "2": "192.168.0.8", "3": "192.168.0.9"}
        text = merge([host_table(name, {0: ip}) for name, ip in ips.items()]).to_json()
        (tmp_path / "t.json").write_text(text)
        done = run("check", "t.json", "--against-hosts", "inv.yaml", "--json")
        assert done.returncode == 3, done.stderr
        (file,) = json.loads(done.stdout)["files"]
        assert [(f["code"], f["message"][:24]) for f in file["findings"]] == [
            ("RT092", "b could not be asked: 12"),
            ("RT090", "s reports '192.168.0.7' "),
        ]
        (tmp_path / "inv.yaml").write_text(
            "defaults: {device_target: Ascend, devices: '[0,1)', workdir: /tmp, python: py}\n"
            f"hosts: {{b: {{address: 127.0.0.1, server_id: '2', ssh: {{port: {port}}}}}}}\n"
        )
        nobody = run("check", "t.json", "--against-hosts", "inv.yaml")
        assert (nobody.returncode, nobody.stdout) == (5, "")


def test_generate_from_the_table_of_modelarts(run, tmp_path, tables):
    group = run("convert", "hccl_9.json", "--to", "group_list").stdout
    (tmp_path / "jobstart_hccl.json").write_text(group)
    done = run("generate", "--jobstart", "jobstart_hccl.json")
    assert done.stdout == (tmp_path / "hccl_9.json").read_text()


def test_merge(run, tmp_path, tables):
    done = run("merge", *tables, "--out", "hccl_all.json")
    assert done.returncode == 0, done.stderr
    assert "24 ranks on 3 servers" in done.stderr
    merged = json.loads((tmp_path / "hccl_all.json").read_text())
    order = [server["server_id"] for server in merged["server_list"]]
    assert order == ["10.0.0.10", "10.0.0.2", "10.0.0.9"]
    assert run("merge", *reversed(tables)).stdout == (tmp_path / "hccl_all.json").read_text()
    again = run("merge", *tables, "hccl_all.json")
    assert again.returncode == 3
    assert "output of an earlier merge" in again.stderr
    assert run("merge", *tables, "--out", tables[0]).returncode == 2


def test_check(run, tmp_path, tables):
    clean = run("check", *tables)
    assert clean.returncode == 0
    assert "3 files: clean" in clean.stderr
    text = (tmp_path / "hccl_9.json").read_text().replace("completed", "initializing")
    (tmp_path / "bad.json").write_text(text)
    bad = run("check", "bad.json", "none.json", "-o", "json")
    assert bad.returncode == 3
    files = json.loads(bad.stdout)["files"]
    assert [[f["code"] for f in file["findings"]] for file in files] == [["RT014"], ["RT007"]]
    sarif = run("check", "bad.json", "-o", "sarif")
    assert sarif.returncode == 3
    assert json.loads(sarif.stdout)["version"] == "2.1.0"


def test_warnings_alone_exit_0(run, tmp_path, tables):
    text = (tmp_path / "hccl_9.json").read_text().replace('"10.0.0.9",\n', '"xx.xx.xx.xx",\n')
    (tmp_path / "warn.json").write_text(text)
    done = run("check", "warn.json")
    assert done.returncode == 0
    assert "1 file: 1 warning" in done.stderr


def test_convert_refuses_what_it_cannot_say(run, tables):
    done = run("convert", tables[0], "--to", "1.2")
    assert done.returncode == 3
    assert "lists no super pods" in done.stderr


def test_rules_are_documented(run):
    page = Path(__file__).parents[3] / "docs" / "rank-table-rules.md"
    assert run("rules").stdout == page.read_text("utf-8")
