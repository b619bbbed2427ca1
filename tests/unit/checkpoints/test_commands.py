"""merge-ckpt, ckpt inspect and ckpt diff as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import numpy as np
import pytest

from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.diff import diff
from orchestrator.checkpoints.inspection import inspect
from tests.unit.checkpoints.sets import CheckpointSet, Whole, ckpt_bytes, split, whole, write_set

MODEL = {
    "embedding": whole("Float16", (32, 8), 1),
    "norm": whole("Float32", (8,), 2),
    "adam_m.embedding": whole("Float32", (32, 8), 3),
}
LAYOUTS = {
    "embedding": split((2, 2), 0, -1),
    "norm": split((2, 2), -1),
    "adam_m.embedding": split((2, 2), 0, -1, opt=(2, 2)),
}


@pytest.fixture
def made(tmp_path: Path) -> CheckpointSet:
    return write_set(tmp_path / "output", MODEL, [LAYOUTS])


def run(*arguments: object) -> Tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def merged(made: CheckpointSet, *more: object) -> Tuple[int, str, str]:
    """The command line of transform_ckpt.py."""
    return run(
        "merge-ckpt",
        *("--src_ckpt_strategy", made.strategy, "--src_ckpt_dir", made.shards),
        *("--dst_ckpt_dir", made.root / "target", "--prefix", "glm2_"),
        *more,
    )


def test_the_command_line_of_transform_ckpt(made: CheckpointSet) -> None:
    status, out, err = merged(made)
    path = made.root / "target" / "rank_0" / "glm2_0.ckpt"
    assert (status, err) == (0, "")
    assert out.startswith("3 parameters of step 1_4")
    assert str(path) in out
    assert all(tensor.values.tobytes() in path.read_bytes() for tensor in MODEL.values())


def test_without_waiting_for_the_disk(made: CheckpointSet) -> None:
    status, _, err = merged(made, "--no-sync", "--verify")
    assert (status, err) == (
        2,
        "error: --verify reads from the disk what --no-sync does not wait for\n"
        "  next: leave one out\n",
    )
    assert merged(made, "--no-sync")[0] == 0
    path = made.root / "target" / "rank_0" / "glm2_0.ckpt"
    assert all(tensor.values.tobytes() in path.read_bytes() for tensor in MODEL.values())


def test_no_strategy_as_transform_ckpt_takes_it(made: CheckpointSet) -> None:
    """A whole file is cut for a strategy: its guide says --src_ckpt_strategy None."""
    merged(made)
    status, _, err = run(
        "merge-ckpt",
        *("--src_ckpt_dir", made.root / "target", "--src_ckpt_strategy", "None"),
        *("--dst_ckpt_dir", made.root / "again", "--dst_ckpt_strategy", made.strategy),
    )
    assert (status, err) == (0, "")
    for rank in range(4):
        again = made.root / "again" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt"
        assert again.read_bytes() == made.file(rank).read_bytes()


def test_json(made: CheckpointSet) -> None:
    status, out, _ = merged(made, "--verify", "--format", "safetensors", "--no-optimizer", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["schema"], found["step"], found["tensors"], found["verified"]) == (
        1, "1_4", 2, True,
    )  # fmt: skip
    assert Path(found["files"][0]).name == "glm2_0.safetensors"


def test_all_other_options_together(made: CheckpointSet) -> None:
    status, out, _ = merged(
        made, "--crc", "--max-shard-size", "1KB", "--trust-replicas", "--equal-slices",
        "--redundancy-removed", "--step", "1_4", "--json",
    )  # fmt: skip
    assert status == 0
    assert len(json.loads(out)["files"]) == 2


def test_another_layout(made: CheckpointSet) -> None:
    status, out, _ = merged(made, "--layout", "dp1,mp4", "--json")
    files = json.loads(out)["files"]
    assert status == 0
    assert [Path(file).parent.name for file in files] == [f"rank_{rank}" for rank in range(4)]
    status, out, _ = run("ckpt", "inspect", made.root / "target", "--src_ckpt_strategy",
                         made.root / "target" / "strategy", "--json")  # fmt: skip
    tensors = {tensor["name"]: tensor for tensor in json.loads(out)["tensors"]}
    assert tensors["embedding"]["cut"] == "4 x 1"


def test_a_wrong_set_ends_with_status_10(made: CheckpointSet) -> None:
    made.file(3).write_bytes(made.file(3).read_bytes()[:-9])
    status, out, err = merged(made)
    assert (status, out) == (10, "")
    assert f"{made.file(3)} is truncated at offset" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--step", "x"], 10, "'x' is no step"),
        (["--step", "9"], 10, "no rank has step 9; found: 1_4"),
        (["--max-shard-size", "5 apples"], 2, "'5 apples' is no size"),
        (["--layout", "zz"], 10, "'zz' is no layout"),
        (["--layout", "dp2", "--dst_ckpt_strategy", "x"], 2, "say the same thing"),
        (["--lora_base", "x"], 2, "--lora_base needs --lora_alpha"),
        (["--lora_alpha", "8"], 10, "holds no LoRA adapter"),
        (["--src_ckpt_strategy", "/nowhere"], 10, "no strategy file or folder /nowhere"),
        (["--src_ckpt_dir", "/nowhere"], 10, "no folder or file /nowhere"),
    ],
)
def test_mistakes(made: CheckpointSet, arguments: List[str], status: int, words: str) -> None:
    found = merged(made, *arguments)
    assert found[0] == status
    assert words in found[2]


def test_inspect_a_file(made: CheckpointSet) -> None:
    found = inspect(made.file(1))
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in found.tensors] == [
        ("embedding", "Float16", (16, 8), 256),
        ("norm", "Float32", (8,), 32),
        ("adam_m.embedding", "Float32", (8, 8), 256),
    ]


def test_inspect_a_folder(made: CheckpointSet) -> None:
    made.file(2).rename(made.file(2, "1_10"))
    status, out, err = run("ckpt", "inspect", made.root, "--json")
    found = json.loads(out)
    assert (status, err) == (10, "")
    assert "no step is complete" in found["problem"]
    assert [(s["step"], s["ranks"], s["missing"], s["complete"]) for s in found["steps"]] == [
        ("1_4", [0, 1, 3], [2], False),
        ("1_10", [2], [0, 1, 3], False),
    ]
    made.file(2, "1_10").rename(made.file(2))
    status, out, _ = run("ckpt", "inspect", made.root)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["1_4", "4", "-", "0.0", "yes"] in lines
    assert ["embedding", "Float16", "32", "x", "8", "0.00", "2", "2", "2", "x", "1"] in lines
    assert lines[-1][1:5] == ["3", "parameters", "of", "step"]


def test_diff_of_equal_checkpoints_however_they_are_cut(made: CheckpointSet) -> None:
    merged(made)
    status, out, _ = run("ckpt", "diff", made.root, made.root / "target/rank_0/glm2_0.ckpt")
    assert (status, out) == (0, "3 parameters are equal\n")


def test_diff_names_what_differs(tmp_path: Path) -> None:
    values = MODEL["norm"].values.copy()
    values[:] = 1
    changed = values.copy()
    changed[3] = 1.5
    one = {**MODEL, "norm": Whole("Float32", values), "a": whole("Int8", (2,), 1)}
    other = {**MODEL, "norm": Whole("Float32", changed), "b": one["a"]}
    one["x"], other["x"] = whole("Float16", (32, 8), 1), whole("Float16", (8, 32), 1)
    for name, model in (("a", one), ("b", other)):
        (tmp_path / f"{name}.ckpt").write_bytes(ckpt_bytes(model))
    status, out, _ = run("ckpt", "diff", tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert status == 10
    assert out.splitlines() == [
        "only in A: a",
        "only in B: b",
        "x: Float16[32, 8] in A, Float16[8, 32] in B",
        "norm: 1 of 8 elements differ, by at most 0.5",
        "2 parameters are equal",
    ]
    status, out, _ = run("ckpt", "diff", tmp_path / "a.ckpt", tmp_path / "b.ckpt", "--json")
    assert json.loads(out)["changed"] == [
        {"name": "norm", "elements": 1, "total": 8, "largest": 0.5}
    ]


def test_diff_of_values_that_are_no_numbers(tmp_path: Path) -> None:
    one = Whole("Float16", np.array([1, np.nan, np.inf], np.float16))
    other = Whole("Float16", np.array([1, 2, 3], np.float16))
    for name, tensor in (("a", one), ("b", other)):
        (tmp_path / f"{name}.ckpt").write_bytes(ckpt_bytes({"w": tensor}))
    opened = [open_checkpoint(tmp_path / f"{name}.ckpt", None) for name in "ab"]
    (change,) = diff(*opened).changed
    assert (change.elements, change.largest) == (2, np.inf)
