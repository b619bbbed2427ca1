"""The catalogue as a host runs it: a program on standard input of the oldest Python at hand."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.checkpoints.shards import index_file
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import ckpt_bytes, whole

PROGRAM = files("orchestrator.node").joinpath("catalogue.py").read_bytes()


def ask(python: str, *arguments: object) -> Tuple[int, List[Dict[str, Any]]]:
    done = subprocess.run(
        [python, "-I", "-S", "-", *map(str, arguments)],
        input=PROGRAM,
        stdout=subprocess.PIPE,
        check=False,
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


def outline_of(python: str, path: Path) -> Dict[int, bytes]:
    (folder, name) = (path.parent, path.name)
    (folder / "output").mkdir(exist_ok=True)
    link = folder / "output" / "checkpoint"
    if not link.exists():
        link.symlink_to(folder)
    status, (answer,) = ask(python, "outline", "--run-dir", folder, name)
    assert status == 0
    assert answer["size"] == path.stat().st_size
    return {offset: base64.b64decode(data) for offset, data in answer["pieces"]}


def skeleton(path: Path, pieces: Dict[int, bytes]) -> Path:
    """A sparse file of the same size that holds the pieces only."""
    for offset, data in pieces.items():
        assert path.read_bytes()[offset : offset + len(data)] == data
    made = path.with_name(f"outline-{path.name}")
    with made.open("wb") as file:
        file.truncate(path.stat().st_size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return made


TENSORS = {
    "small": whole("Float32", (4,), 1),
    "large": whole("Float16", (300, 40), 2),
    "n" * 700: whole("Float16", (5000,), 3),
    "step": whole("Int32", (), 4),
}


@pytest.mark.parametrize("crc", [False, True])
def test_an_outline_is_enough_to_index_a_file(python: str, tmp_path: Path, crc: bool) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(ckpt_bytes(TENSORS, crc=crc, slice_bytes=9000))
    pieces = outline_of(python, path)
    assert sum(map(len, pieces.values())) < 6000
    ours, theirs = index_file(skeleton(path, pieces)), index_file(path)
    assert (ours.tensors, ours.crc, ours.size) == (theirs.tensors, theirs.crc, theirs.size)


def test_an_outline_of_safetensors(python: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones((300, 40), np.float16), "b": np.zeros(3, np.int64)}, path)
    pieces = outline_of(python, path)
    assert sum(map(len, pieces.values())) < 1000
    assert index_file(skeleton(path, pieces)).tensors == index_file(path).tensors


@pytest.mark.parametrize("number", range(40))
def test_an_outline_of_a_damaged_file_shows_the_damage(tmp_path: Path, number: int) -> None:
    """What the whole file is refused for, its outline is refused for."""
    chance = random.Random(number)
    path = tmp_path / ("a.ckpt" if number % 4 else "a.safetensors")
    if path.suffix == ".ckpt":
        data = bytearray(ckpt_bytes(TENSORS, crc=number % 3 == 0))
    else:
        save_file({"a": np.ones((300, 40), np.float16)}, path)
        data = bytearray(path.read_bytes())
    if number % 2:
        del data[chance.randrange(len(data)) :]
    else:  # in a header, most likely
        data[chance.choice([chance.randrange(60), chance.randrange(len(data))])] ^= (
            1 << chance.randrange(8)
        )
    path.write_bytes(data)
    made = skeleton(path, outline_of(sys.executable, path))
    assert refusal(made) == refusal(path).replace(path.name, made.name)


def refusal(path: Path) -> str:
    try:
        return repr(index_file(path).tensors)
    except CheckpointError as error:
        return str(error)


def test_a_file_that_is_gone_is_an_error_that_names_it(python: str, tmp_path: Path) -> None:
    status, answers = ask(python, "hash", "--run-dir", tmp_path, "rank_0/gone.ckpt")
    assert status == 4
    assert "rank_0/gone.ckpt: No such file" in answers[-1]["error"]["message"]
