"""The catalogue as a host runs it: a program on standard input of the oldest Python at hand."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

PROGRAM = files("orchestrator.node").joinpath("catalogue.py").read_bytes()


@pytest.fixture(params=["python3.7", "this Python"])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "this Python":
        return sys.executable
    old = shutil.which("python3.7")
    if old is None or subprocess.run([old, "-c", ""]).returncode != 0:
        pytest.skip("no python3.7 on the PATH")
    return old


def ask(python: str, *arguments: object) -> Tuple[int, List[Dict[str, Any]]]:
    done = subprocess.run(
        [python, "-", *map(str, arguments)], input=PROGRAM, stdout=subprocess.PIPE, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def make_run(root: Path) -> Dict[str, bytes]:
    contents = {}
    for rank in (0, 1, 2):
        for step in (4, 10):
            path = root / "output" / "checkpoint" / f"rank_{rank}" / f"g_rank_{rank}-1_{step}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            contents[f"rank_{rank}/{path.name}"] = f"{rank} {step}".encode() * 1000
            path.write_bytes(contents[f"rank_{rank}/{path.name}"])
    strategy = root / "output" / "strategy"
    strategy.mkdir()
    for rank in (0, 1):
        (strategy / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(b"layouts \xff")
    (strategy / ".hidden.ckpt").write_bytes(b"no")
    (strategy / "notes.txt").write_bytes(b"no")
    return contents


def test_lists_the_files_of_its_ranks_and_each_strategy_once(python: str, tmp_path: Path) -> None:
    make_run(tmp_path)
    status, (answer,) = ask(python, "list", "--run-dir", tmp_path, "--ranks", "0,1")

    assert status == 0
    assert [(f["rank"], f["name"]) for f in answer["files"]] == [
        (0, "g_rank_0-1_10.ckpt"),
        (0, "g_rank_0-1_4.ckpt"),
        (1, "g_rank_1-1_10.ckpt"),
        (1, "g_rank_1-1_4.ckpt"),
    ]
    assert {f["size"] for f in answer["files"]} == {3000, 4000}
    assert [s["name"] for s in answer["strategy"]] == [
        "ckpt_strategy_rank_0.ckpt",
        "ckpt_strategy_rank_1.ckpt",
    ]
    (digest,) = {s["sha256"] for s in answer["strategy"]}
    assert base64.b64decode(answer["contents"][digest]) == b"layouts \xff"


def test_a_run_without_checkpoints_lists_none(python: str, tmp_path: Path) -> None:
    status, (answer,) = ask(python, "list", "--run-dir", tmp_path, "--ranks", "0")
    assert (status, answer["files"], answer["strategy"]) == (0, [], [])


def test_digests(python: str, tmp_path: Path) -> None:
    contents = make_run(tmp_path)
    status, answers = ask(python, "hash", "--run-dir", tmp_path, *contents)
    assert status == 0
    assert {a["file"]: a["sha256"] for a in answers} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert all(a["size"] == len(contents[a["file"]]) for a in answers)


def test_a_file_that_is_gone_is_an_error_that_names_it(python: str, tmp_path: Path) -> None:
    status, answers = ask(python, "hash", "--run-dir", tmp_path, "rank_0/gone.ckpt")
    assert status == 4
    assert "rank_0/gone.ckpt: No such file" in answers[-1]["error"]["message"]
