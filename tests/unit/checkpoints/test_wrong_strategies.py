"""Strategies that do not belong to the files, or lack a part: each is refused, with the rank, the
file, the parameter, and what was expected and found."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

import pytest

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.strategy import Strategy, strategy_bytes
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import (
    split,
    whole,
    write_set,
)
from tests.unit.checkpoints.wrong import (
    DP2_MP2,
    DP4,
    DP4_OPT,
    MODEL,
    MP4,
    refuse,
    rewrite,
)


def test_a_sharded_parameter_that_the_strategy_does_not_name(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    without = {name: layout for name, layout in MP4.items() if name != "dense.weight"}
    for rank in range(4):
        path = made.strategy / f"ckpt_strategy_rank_{rank}.ckpt"
        path.write_bytes(strategy_bytes(Strategy((without,), 4), 0))
    refuse(
        made, "rank 1", str(made.file(1)), "dense.weight", "expected the same bytes as in rank 0"
    )


def test_sharded_files_without_a_strategy(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    with pytest.raises(CheckpointError, match=r"rank 1, .*embedding\.weight: expected the same"):
        merge(made.shards, None, tmp_path / "out")


@pytest.mark.parametrize("name", ["dense.weight", "adam_m.dense.weight"])
def test_a_parameter_of_the_strategy_that_no_shard_holds(tmp_path: Path, name: str) -> None:
    model = dict(MODEL)
    layouts = dict(MP4)
    for weight in MP4:
        model[f"adam_m.{weight}"] = whole("Float32", MODEL[weight].values.shape, 9)
        layouts[f"adam_m.{weight}"] = MP4[weight]
    made = write_set(tmp_path, model, [layouts])
    for rank in range(4):
        rewrite(made, rank, {n: t for n, t in model.items() if n != name}, layouts)
    refuse(made, "rank 0", str(made.file(0)), f"parameter {name}", "found in no rank's file")


def test_a_parameter_that_one_shard_lacks(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    rewrite(made, 2, {n: t for n, t in MODEL.items() if n != "norm.weight"}, MP4)
    refuse(made, "rank 2", str(made.file(2)), "norm.weight is missing", "as in rank 0")


OTHER_STRATEGIES: List[Dict[str, Dict[str, Layout]]] = [
    {"files": MP4, "strategy": DP2_MP2},
    {"files": MP4, "strategy": DP4},
    {
        "files": MP4,
        "strategy": {
            n: Layout((4, 1), tuple((1,) if a else () for a in layout.tensor_map))
            for n, layout in MP4.items()
        }
        | {"norm.weight": split((4, 1), 1)},
    },
    {
        "files": DP2_MP2,
        "strategy": {
            n: Layout((2, 2), tuple((1,) if a else () for a in layout.tensor_map))
            for n, layout in DP2_MP2.items()
        },
    },
    {"files": DP4, "strategy": MP4},
    {"files": DP4, "strategy": DP4_OPT},
    {"files": DP4_OPT, "strategy": DP4},
    {"files": DP4_OPT, "strategy": DP2_MP2},
]


@pytest.mark.parametrize("case", OTHER_STRATEGIES)
def test_a_wrong_strategy(tmp_path: Path, case: Dict[str, Dict[str, Layout]]) -> None:
    made = write_set(tmp_path, MODEL, [case["files"]])
    for rank in range(4):
        path = made.strategy / f"ckpt_strategy_rank_{rank}.ckpt"
        path.write_bytes(strategy_bytes(Strategy((case["strategy"],), 4), 0))
    refuse(made, "rank ", "expected", "found")


def test_a_strategy_that_cuts_the_wrong_axis_is_betrayed_by_the_bias(tmp_path: Path) -> None:
    model = {"h.weight": whole("Float16", (32, 12), 1), "h.bias": whole("Float16", (32,), 2)}
    right = {"h.weight": split((4,), 0, -1), "h.bias": split((4,), 0)}
    made = write_set(tmp_path, model, [right])
    wrong = {"h.weight": split((4,), -1, 0), "h.bias": split((4,), 0)}
    for rank in range(4):
        path = made.strategy / f"ckpt_strategy_rank_{rank}.ckpt"
        path.write_bytes(strategy_bytes(Strategy((wrong,), 4), 0))
    refuse(made, "rank 0", "h.weight", "expected a side of 32", "found [8, 48]")


def test_a_strategy_of_another_number_of_ranks(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    for path in made.strategy.iterdir():
        path.unlink()
    two = {name: Layout((2,), ((),) * len(layout.tensor_map)) for name, layout in MP4.items()}
    (made.strategy / "one.ckpt").write_bytes(strategy_bytes(Strategy((two,), 2), 0))
    refuse(made, "a folder of rank 2", "ranks 0 to 1")


def test_a_strategy_of_another_number_of_axes(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    wrong = {**MP4, "norm.weight": split((1, 4), -1, -1)}
    for rank in range(4):
        path = made.strategy / f"ckpt_strategy_rank_{rank}.ckpt"
        path.write_bytes(strategy_bytes(Strategy((wrong,), 4), 0))
    refuse(made, "rank 0", "norm.weight", "2 axes", "shape [8]")


def test_two_strategy_files_of_one_stage_disagree(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    (made.strategy / "ckpt_strategy_rank_2.ckpt").write_bytes(
        strategy_bytes(Strategy((DP2_MP2,), 4), 0)
    )
    refuse(made, "ckpt_strategy_rank_2.ckpt disagrees with", "embedding.weight in stage 0")
