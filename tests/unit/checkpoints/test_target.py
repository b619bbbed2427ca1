"""Cutting for another layout: every rank of the target gets its slice, whatever the source was."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.checkpoints.strategy import Strategy, load_strategy, strategy_bytes
from orchestrator.checkpoints.target import Words, parse_words
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.any_layout import layouts
from tests.unit.checkpoints.sets import Whole, part, split, whole, write_set

MODEL = {
    "layers.0.self_attention.query_key_value.weight": whole("Float16", (24, 16), 1),
    "layers.0.self_attention.dense.weight": whole("Float16", (16, 16), 2),
    "layers.0.norm.weight": whole("Float32", (16,), 3),
    "adam_m.layers.0.self_attention.dense.weight": whole("Float32", (16, 16), 4),
    "global_step": Whole("Int32", np.array(7, np.int32)),
}
QKV, DENSE, NORM, MOMENT, STEP = MODEL
DP4_OPT = {
    QKV: split((4,), -1, -1, opt=(1, 4)),
    DENSE: split((4,), -1, -1, opt=(1, 4)),
    NORM: split((4,), -1),
    MOMENT: split((4,), -1, -1, opt=(1, 4)),
}


def content(path: Path) -> Dict[str, bytes]:
    data = path.read_bytes()
    return {
        name: b"".join(data[offset : offset + length] for offset, length in tensor.segments)
        for name, tensor in index_file(path).tensors.items()
    }


def assert_cut(folder: Path, model: Dict[str, Whole], strategy: Strategy) -> None:
    for rank in range(strategy.world_size):
        found = content(folder / f"rank_{rank}" / f"checkpoint_{rank}.ckpt")
        named = set(strategy.names())
        stage = strategy.stages[strategy.stage_of(rank)]
        expected = {
            name: part(t.values, stage.get(name), rank % strategy.stage_ranks).tobytes()
            for name, t in model.items()
            if name in stage or name not in named
        }
        assert found == expected


def test_layout_in_words(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    report = merge(made.shards, made.strategy, tmp_path / "out", target=parse_words("dp2, mp4"))

    assert len(report.files) == 8
    strategy = load_strategy(tmp_path / "out" / "strategy")
    assert strategy.stages[0] == {
        QKV: split((2, 4), 0, -1),
        DENSE: split((2, 4), -1, 0),
        NORM: split((2, 4), -1),
        MOMENT: split((2, 4), -1, 0),
    }
    assert_cut(tmp_path / "out", MODEL, strategy)


def test_sharded_optimizer_in_words(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    merge(made.shards, made.strategy, tmp_path / "out", target=Words(2, 2, True))
    strategy = load_strategy(tmp_path / "out" / "strategy")
    assert strategy.stages[0][QKV] == split((2, 2), 0, -1, opt=(2, 2))
    assert strategy.stages[0][DENSE] == split((2, 2), -1, 0, opt=(2, 2))
    assert strategy.stages[0][NORM] == split((2, 2), -1, opt=(1, 4))
    assert_cut(tmp_path / "out", MODEL, strategy)


def test_there_and_back_again(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    merge(made.shards, made.strategy, tmp_path / "cut", target=Words(1, 4, False))
    again = merge(tmp_path / "cut", tmp_path / "cut" / "strategy", tmp_path / "back.ckpt")
    assert content(again.output) == {name: t.values.tobytes() for name, t in MODEL.items()}


def test_strategy_with_pipeline_stages(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    stages = (
        {QKV: split((1, 2), 0, -1)},
        {DENSE: split((1, 2), -1, 0), NORM: split((1, 2), 0), MOMENT: split((1, 2), 0, -1)},
    )
    target = tmp_path / "target.ckpt"
    target.write_bytes(strategy_bytes(Strategy(stages, 2)))
    merge(made.shards, made.strategy, tmp_path / "out", target=target)
    assert_cut(tmp_path / "out", MODEL, Strategy(stages, 2))


def test_a_target_without_moments_gets_none(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    layouts = {QKV: split((2,), 0, -1), DENSE: split((2,), -1, 0), NORM: split((2,), -1)}
    target = tmp_path / "target.ckpt"
    target.write_bytes(strategy_bytes(Strategy((layouts,), 2)))
    report = merge(made.shards, made.strategy, tmp_path / "out", target=target)
    assert "1 moments left out: the target has none" in report.notes
    model = {name: t for name, t in MODEL.items() if name != MOMENT}
    assert_cut(tmp_path / "out", model, Strategy((layouts,), 2))


@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        ({QKV: split((2,), 0, -1), DENSE: split((2,), 0, -1)}, "norm.weight is not in the target"),
        ({"other": split((2,), 0)}, "query_key_value.weight is not in the target"),
        (
            {**{n: Layout((5,), ((0,), ())) for n in (QKV, DENSE, MOMENT)}, NORM: split((5,), -1)},
            "axis 0 of length 24 does not divide into 5",
        ),
        ({**DP4_OPT, NORM: split((4,), -1, -1)}, "has 2 axes, the checkpoint shape \\[16\\]"),
        ({**DP4_OPT, "more": split((4,), 0)}, "more is in the target strategy, but not in"),
    ],
)
def test_a_target_of_another_model(tmp_path: Path, layouts: Dict[str, Layout], words: str) -> None:
    made = write_set(tmp_path, MODEL, [DP4_OPT])
    target = tmp_path / "target.ckpt"
    ranks = next(iter(layouts.values())).ranks
    target.write_bytes(strategy_bytes(Strategy((layouts,), ranks)))
    with pytest.raises(CheckpointError, match=words):
        merge(made.shards, made.strategy, tmp_path / "out", target=target)
    assert not list(tmp_path.glob("out/rank_*"))


@pytest.mark.parametrize("text", ["", "dp", "dp0", "dp2,dp2", "pp2", "dp2;mp2", "opt4", "dp-1"])
def test_words_that_are_no_layout(text: str) -> None:
    with pytest.raises(CheckpointError, match="is no layout"):
        parse_words(text)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(source=layouts(), target=layouts())
def test_any_layout_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory, source: Layout, target: Layout
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    for layout in (source, target):
        try:
            layout.piece_shape((16, 16, 16))
        except ValueError:
            return
    model = {"w": whole("Float16", (16, 16, 16), 1)}
    made = write_set(tmp_path, model, [{"w": source}])
    path = tmp_path / "target.ckpt"
    path.write_bytes(strategy_bytes(Strategy(({"w": target},), 8)))
    merge(made.shards, made.strategy, tmp_path / "out", target=path)
    assert_cut(tmp_path / "out", model, Strategy(({"w": target},), 8))
