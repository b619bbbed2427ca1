"""The preflight's program as it is sent to a host: standard input of any Python from 3.7 on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Optional

import pytest

from orchestrator.engine.preflight import program
from orchestrator.node import preflight
from orchestrator.preflight.hccn_tool import Ping
from orchestrator.preflight.report import parse_answers, parse_report
from tests.cluster.node.conftest import find_python

TOOL = """#!/bin/sh
case "$*" in
*-ping*) printf 'device 3 PING 10.0.0.1\\nrecv seq=0,time=0.1ms\\n'
  echo '1 packets transmitted, 1 received, 0.00% packet loss' ;;
*-link*) echo 'link status: UP' ;;
*) echo "no $*"; exit 3 ;;
esac
"""


def ask(tmp_path: Path, python: str = sys.executable, **request: Any) -> Dict[str, Any]:
    done = subprocess.run(
        [python, "-"],
        input=program(request),
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GLM2_RUN_ID": "run-9"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def request(tmp_path: Path, **changes: Any) -> Dict[str, Any]:
    return {
        "devices": [3],
        "workdir": str(tmp_path),
        "port": 8118,
        "tools": True,
        "address": "127.0.0.1",
        "ports": [],
        "peers": [],
        "files": [],
        "whole": False,
        **changes,
    }


@pytest.mark.parametrize("version", ["own", "3.7", "3.8", "3.13"])
def test_the_answer_on_every_python(tmp_path: Path, version: str) -> None:
    python = sys.executable if version == "own" else find_python(version)
    if not python:
        pytest.skip(f"no Python {version} on the PATH or in GLM2_TEST_PYTHONS")
    (tmp_path / "hccn_tool").write_text(TOOL)
    (tmp_path / "hccn_tool").chmod(0o755)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        wanted = request(tmp_path, ports=[port], files=[[str(tmp_path / "none"), True]])
        answer = ask(tmp_path, python, survey=wanted, pings=[[3, "10.0.0.1"]])
    read = parse_report(answer, host="here")
    assert read.facts.hostname == socket.gethostname()
    said = {(a.tool, " ".join(a.argv[3:])): type(a.said).__name__ for a in read.answers}
    assert said["hccn_tool", "-link -g"] == "Link"
    assert said["hccn_tool", "-tls -g"] == "NotUnderstood"
    assert said["npu-smi", "health -i 3"] == "Unanswered"
    assert len(said) == len(read.answers) == 9
    assert read.ports_taken.keys() == {port}
    assert f"(pid {os.getpid()})" in read.ports_taken[port]
    assert "run-9" in read.run_ids.values()
    assert read.files[str(tmp_path / "none")].missing
    assert 0 <= read.clock.duration < 100
    (ping,) = parse_answers(answer["pings"])
    assert ping.said == Ping(1, 1)


def test_without_tools_and_pings(tmp_path: Path) -> None:
    answer = ask(tmp_path, survey=request(tmp_path, tools=False), pings=None)
    assert (answer["commands"], answer["run_ids"]) == ([], {})
    assert "pings" not in answer


def test_only_pings(tmp_path: Path) -> None:
    answer = ask(tmp_path, pings=[[0, "10.0.0.1"]])
    assert answer.keys() == {"schema", "start", "end", "pings"}
    assert answer["pings"][0]["error"] == "not found"


def test_files_and_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub/b").write_text("b")
    (data / "a").write_text("a")
    one = preflight.file_digest(str(data), False)
    assert (one["files"], one["bytes"], one["sampled"]) == (2, 2, False)
    (data / "sub/b").rename(data / "sub/c")
    assert preflight.file_digest(str(data), False)["sha256"] != one["sha256"]
    assert preflight.file_digest(str(data), False, folders=False)["sha256"] is None
    single = preflight.file_digest(str(data / "a"), False)
    assert single["sha256"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    absent = preflight.file_digest(str(data / "a" / "x"), False)
    assert (absent["missing"], absent["error"]) == (True, "Not a directory")
    (data / "loop").symlink_to("loop")
    broken = preflight.file_digest(str(data / "loop"), False)
    assert (broken["missing"], bool(broken["error"])) == (False, True)


def test_large_files_are_sampled_unless_whole(tmp_path: Path) -> None:
    file = tmp_path / "glm2.ckpt"
    with file.open("wb") as stream:
        stream.truncate((100 << 20) + 7)
    sampled = preflight.file_digest(str(file), False)
    assert (sampled["sampled"], sampled["bytes"]) == (True, (100 << 20) + 7)
    whole = preflight.file_digest(str(file), True)
    assert not whole["sampled"]
    with file.open("r+b") as stream:  # the last byte is always in a sample
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert preflight.file_digest(str(file), False)["sha256"] != sampled["sha256"]
    assert preflight.file_digest(str(file), True)["sha256"] != whole["sha256"]


def test_a_folder_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_MOST_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    found = preflight.file_digest(str(tmp_path), False)
    assert found["error"] == "holds more than 3 files"


@pytest.mark.parametrize("address", ["127.0.0.1", "198.51.100.1", "0.0.0.0", "::1"])
def test_ports(address: str) -> None:
    """An address that is not ours stands for all of ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server(
            (address.replace("198.51.100.1", "0.0.0.0"), 0), family=family
        )
    except OSError as error:
        pytest.skip(f"no address {address} here: {error}")
    with closing(listening):
        port = listening.getsockname()[1]
        taken = preflight.check_ports(address, [port])
    assert taken.keys() == {str(port)}
    assert taken[str(port)]["pid"] == os.getpid()
    assert preflight.check_ports(address, [port]) == {}


def test_peers_that_answer_or_refuse_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
        assert preflight.reach([["127.0.0.1", port], ["::1.no", port]])[0] is None
    found = preflight.reach([["127.0.0.1", port], ["no-such-host.invalid", 1]])
    assert found[0] is None
    assert found[1]

    def silent(address: object, timeout: float) -> socket.socket:
        raise socket.timeout("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    assert preflight.reach([["127.0.0.1", port]]) == ["no answer within 5 s"]


def test_the_code_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(text: Optional[str]) -> Any:
        folder = tmp_path / "own_package"
        folder.mkdir(exist_ok=True)
        if text is not None:
            (folder / "__init__.py").write_text(text)
        (folder / "notes.txt").write_text(str(text))
        found = preflight.code_digest("own_package")
        assert found is not None
        return found["sha256"]

    monkeypatch.syspath_prepend(tmp_path)
    first = digest("a = 1\n")
    assert digest(None) == first  # only code counts
    assert digest("a = 2\n") != first
    assert preflight.code_digest("no_such_package") is None
