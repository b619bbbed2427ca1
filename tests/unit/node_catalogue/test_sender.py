"""The sender as a host runs it: from its command line, by the oldest Python at hand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from orchestrator.engine.receive import _BOOT

BEGIN = b"glm2-orch sends\n"


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def send(python: str, folder: Path, *parts: Dict[str, Any]) -> Tuple[int, bytes, bytes]:
    program = files("orchestrator.node").joinpath("sender.py").read_bytes()
    request = json.dumps({"folder": str(folder), "parts": parts}).encode()
    done = subprocess.run(
        [python, "-I", "-S", "-c", _BOOT, packed(program), packed(request)],
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def part(path: Path, ranges: List[Tuple[int, int]], skip: int = 0) -> Dict[str, Any]:
    status = path.stat()
    return {
        "file": path.name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "skip": skip,
        "ranges": ranges,
    }


def expected(data: bytes, skip: int = 0) -> bytes:
    digest = {"sha256": hashlib.sha256(data).hexdigest(), "crc32": zlib.crc32(data)}
    return data[skip:] + json.dumps(digest).encode() + b"\n"


def test_files_and_ranges_with_their_digests(python: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(700_001))
    second.write_bytes(b"0123456789")
    status, out, err = send(
        python,
        tmp_path,
        part(first, [(0, 700_001)]),
        part(first, [(0, 700_001)], skip=300_000),
        part(second, [(2, 3), (7, 2)], skip=1),
        part(second, [(0, 10)], skip=10),
    )
    assert (status, err) == (0, b"")
    whole = first.read_bytes()
    assert out == BEGIN + b"".join(
        [
            expected(whole),
            expected(whole, 300_000),
            expected(b"23478", 1),
            expected(b"0123456789", 10),
        ]
    )


@pytest.mark.parametrize("problem", ["gone", "changed", "shorter", "a folder"])
def test_a_file_that_is_not_as_it_was_listed(python: str, tmp_path: Path, problem: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    asked = part(path, [(0, 10)])
    words = {"changed": "has changed since", "shorter": "shrank"}.get(problem, "cannot read")
    if problem == "shorter":
        asked["ranges"] = [[0, 11]]
    elif problem == "changed":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
        if problem == "a folder":
            path.mkdir()
    status, out, err = send(python, tmp_path, asked)
    assert status == 4
    assert b"sha256" not in out
    assert words in json.loads(err.splitlines()[-1])["error"]["message"]


def test_it_ends_when_nobody_listens(python: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    program = files("orchestrator.node").joinpath("sender.py").read_bytes()
    parts = [part(path, [(0, 1 << 20)])] * 50
    request = json.dumps({"folder": str(tmp_path), "parts": parts}).encode()
    process = subprocess.Popen(
        [python, "-I", "-S", "-c", _BOOT, packed(program), packed(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
