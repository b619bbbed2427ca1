"""Sets that look odd but are correct, and must pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from tests.unit.checkpoints.sets import (
    Whole,
    raw_record,
    split,
    whole,
    write_set,
)
from tests.unit.checkpoints.wrong import (
    DP4,
    MODEL,
    MP4,
    flip,
    pipeline,
    refuse,
)


def test_adapters_alone_are_a_checkpoint(tmp_path: Path) -> None:
    lora = {
        "layers.0.qkv.mindpet_delta_lora_a": whole("Float16", (4, 8), 1),
        "layers.0.qkv.mindpet_delta_lora_b": whole("Float16", (16, 4), 2),
    }
    layouts = {name: split((2,), 0, -1) for name in lora}
    made = write_set(tmp_path, lora, [{**layouts, "layers.0.qkv.weight": split((2,), 0, -1)}])
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert report.tensors == 2
    assert "the files hold no weights" in report.notes


def test_weights_saved_without_the_moments_of_the_strategy(tmp_path: Path) -> None:
    layouts = {**MP4, **{f"adam_v.{name}": layout for name, layout in MP4.items()}}
    made = write_set(tmp_path, MODEL, [layouts])
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert report.tensors == 4
    assert "the files hold no optimizer state adam_v.*" in report.notes


def test_a_stale_copy_of_another_stage_is_passed_over(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    stale = raw_record("dense.weight", [8, 16], "Float16", bytes(256))
    made.file(0).write_bytes(made.file(0).read_bytes() + stale)
    made.file(1).write_bytes(made.file(1).read_bytes() + stale)
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert MODEL["dense.weight"].values.tobytes() in report.output.read_bytes()


def test_a_parameter_that_two_stages_share_must_be_equal_in_both(tmp_path: Path) -> None:
    model = {"embedding.weight": MODEL["embedding.weight"]}
    stages = [{"embedding.weight": split((2,), 0, -1)}, {"embedding.weight": split((2,), -1, 0)}]
    made = write_set(tmp_path, model, stages)
    assert merge(made.shards, made.strategy, tmp_path / "good").tensors == 1
    tensor = index_ckpt(made.file(3)).tensors["embedding.weight"]
    flip(made.file(3), tensor.segments[0].offset)
    refuse(made, "rank 2", "embedding.weight", "expected the same bytes as in rank 0")


def test_equal_slices_can_be_accepted(tmp_path: Path) -> None:
    expert = whole("Float16", (1, 8, 8), 1).values
    model = {"experts": Whole("Float16", np.repeat(expert, 4, axis=0))}
    made = write_set(tmp_path, model, [{"experts": split((4,), 0, -1, -1)}])
    refuse(made, "rank 1", "experts", "copies, not slices")
    report = merge(made.shards, made.strategy, tmp_path / "good", equal_slices=True)
    assert model["experts"].values.tobytes() in report.output.read_bytes()


def test_replicas_can_be_trusted(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4])
    flip(made.file(3), index_ckpt(made.file(3)).tensors["dense.weight"].segments[0].offset)
    refuse(made, "rank 3")
    report = merge(made.shards, made.strategy, tmp_path / "good", trust_replicas=True)
    assert MODEL["dense.weight"].values.tobytes() in report.output.read_bytes()
