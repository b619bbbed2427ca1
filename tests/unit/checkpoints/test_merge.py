"""Merging right sets gives back the whole tensors, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

import numpy as np
import pytest

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from orchestrator.checkpoints.shards import index_file
from tests.unit.checkpoints.sets import (
    CheckpointSet,
    Whole,
    ckpt_bytes,
    part,
    raw_record,
    split,
    whole,
    write_set,
)

Stage = Dict[str, Layout]


def read(path: Path) -> Dict[str, bytes]:
    data = path.read_bytes()
    return {
        name: b"".join(data[offset : offset + length] for offset, length in tensor.segments)
        for name, tensor in index_file(path).tensors.items()
    }


def assert_whole(path: Path, model: Mapping[str, Whole]) -> None:
    found = index_file(path).tensors
    assert set(found) == set(model)
    content = read(path)
    for name, tensor in model.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.values.shape
        assert content[name] == tensor.values.tobytes(), name


def small_model(dtype: str = "Float16") -> Dict[str, Whole]:
    model = {
        "embedding": whole(dtype, (24, 16), 1),
        "attention.wo": whole(dtype, (16, 32), 2),
        "norm": whole("Float32", (16,), 3),
        "odd_vocabulary": whole(dtype, (13, 8), 4),
        "experts": whole(dtype, (4, 8, 12), 5),
    }
    for prefix in ("adam_m.", "adam_v."):
        for name in ("embedding", "attention.wo", "norm", "odd_vocabulary", "experts"):
            model[prefix + name] = whole("Float32", model[name].values.shape, len(prefix + name))
    model["global_step"] = whole("Int32", (), 7)
    model["scale_sense"] = whole("Float32", (1,), 8)
    return model


def stage_of(layouts: Stage) -> Stage:
    """The moments are cut as their parameters are."""
    return {
        p + name: layout for p in ("", "adam_m.", "adam_v.") for name, layout in layouts.items()
    }


LAYOUTS: Dict[str, List[Stage]] = {
    "dp8 and optimizer shard": [
        {
            "embedding": split((8,), -1, -1, opt=(1, 8)),
            "attention.wo": split((8,), -1, -1, opt=(1, -1)),
            "norm": split((8,), -1),
            "odd_vocabulary": split((8,), -1, -1),
            "experts": split((8,), -1, -1, -1, opt=(1, 2)),
        }
    ],
    "mp4": [
        {
            "embedding": split((1, 4), 0, -1),
            "attention.wo": split((1, 4), -1, 0),
            "norm": split((1, 4), -1),
            "odd_vocabulary": split((1, 4), -1, 0),
            "experts": split((1, 4), -1, -1, 0),
        }
    ],
    "dp2 mp2 and optimizer shard": [
        {
            "embedding": split((2, 2), 0, -1, opt=(2, 2)),
            "attention.wo": split((2, 2), -1, 0, opt=(2, -1)),
            "norm": split((2, 2), -1, opt=(1, 4)),
            "odd_vocabulary": split((2, 2), -1, -1),
            "experts": split((2, 2), 1, 0, -1),
        }
    ],
    "transposed and nested": [
        {
            "embedding": Layout((2, 2, 2), ((0, 2), (1,))),
            "attention.wo": Layout((2, 2, 2), ((), (1, 2, 0))),
            "norm": Layout((2, 2, 2), ((2,),), 1, 2),
            "odd_vocabulary": Layout((2, 2, 2), ((), (2,))),
            "experts": Layout((2, 2, 2), ((0,), (2,), (1,))),
        }
    ],
    "dp2 mp2 pp2": [
        {
            "embedding": split((2, 2), 0, -1, opt=(2, 2)),
            "attention.wo": split((2, 2), -1, 0, opt=(2, 2)),
            "norm": split((2, 2), -1),
        },
        {
            "odd_vocabulary": split((2, 2), -1, -1),
            "experts": split((2, 2), -1, 0, -1),
            "embedding": split((2, 2), 0, -1, opt=(2, 2)),
        },
    ],
}


@pytest.fixture(params=list(LAYOUTS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointSet:
    stages = [stage_of(stage) for stage in LAYOUTS[request.param]]
    return write_set(tmp_path / "set", small_model(), stages)


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_every_layout_merges_to_the_whole(made: CheckpointSet, tmp_path: Path, fmt: str) -> None:
    report = merge(made.shards, made.strategy, tmp_path / "out", fmt=fmt)

    assert report.output == tmp_path / "out" / "rank_0" / f"checkpoint_0.{fmt}"
    assert_whole(report.output, made.model)
    assert report.step == "1_4"


def test_progress_ends_at_the_total(made: CheckpointSet, tmp_path: Path) -> None:
    calls: List[Sequence[int]] = []
    merge(made.shards, made.strategy, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)


def test_without_optimizer_only_weights_and_counters_remain(
    made: CheckpointSet, tmp_path: Path
) -> None:
    report = merge(made.shards, made.strategy, tmp_path / "out", include_optimizer=False)
    weights = {n: t for n, t in made.model.items() if not n.startswith("adam_")}
    assert_whole(report.output, weights)


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16", "Int64", "UInt8", "Bool", "Float64"])
def test_types(dtype: str, tmp_path: Path) -> None:
    model = {"w": whole(dtype, (8, 6), 1), "s": whole(dtype, (), 2)}
    made = write_set(tmp_path, model, [{"w": split((2, 2), 1, 0)}])
    assert_whole(merge(made.shards, made.strategy, tmp_path / "out").output, model)


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_safetensors_shards_of_bfloat16(tmp_path: Path, fmt: str) -> None:
    """MindSpore's tools end with a TypeError here."""
    model = {"w": whole("BFloat16", (8, 6), 1), "norm": whole("Float32", (6,), 2)}
    made = write_set(tmp_path, model, [{"w": split((2, 2), 1, 0), "norm": split((2, 2), -1)}])
    for rank in range(4):
        merged = merge(made.file(rank), None, made.file(rank).with_suffix(".safetensors"))
        assert merged.output.exists()
        merged.manifest.unlink()
        made.file(rank).unlink()
    assert_whole(merge(made.shards, made.strategy, tmp_path / "out", fmt=fmt).output, model)


def test_plain_data_parallel_needs_no_strategy(tmp_path: Path) -> None:
    model = small_model()
    made = write_set(
        tmp_path, model, [{name: Layout((2,), ((),) * t.values.ndim) for name, t in model.items()}]
    )
    assert_whole(merge(made.shards, None, tmp_path / "out").output, model)


def test_a_replica_stands_in_for_a_missing_rank(tmp_path: Path) -> None:
    model = {"w": whole("Float32", (8, 8), 1)}
    made = write_set(tmp_path, model, [{"w": split((2, 2), -1, 0)}])
    made.file(0).unlink()
    made.file(3).unlink()
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert_whole(report.output, model)
    assert "no file of ranks 0, 3: taken from replicas" in report.notes


def test_the_latest_complete_step_is_the_largest_number(tmp_path: Path) -> None:
    old, new = {"w": whole("Float32", (8,), 1)}, {"w": whole("Float32", (8,), 2)}
    stages = [{"w": split((4,), 0)}]
    write_set(tmp_path, new, stages, step="1_10")
    made = write_set(tmp_path, old, stages, step="1_4")
    assert_whole(merge(made.shards, made.strategy, tmp_path / "a").output, new)
    assert_whole(merge(made.shards, made.strategy, tmp_path / "b", step=4).output, old)


def test_an_unfinished_step_is_passed_over_and_named(tmp_path: Path) -> None:
    old, new = {"w": whole("Float32", (8,), 1)}, {"w": whole("Float32", (8,), 2)}
    stages = [{"w": split((4,), 0)}]
    made = write_set(tmp_path, old, stages, step="1_4")
    write_set(tmp_path, new, stages, step="1_10").file(2, "1_10").unlink()
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert_whole(report.output, old)
    assert "step 1_10 is incomplete: no file of rank 2" in report.notes


def test_stray_folders_and_files_do_not_disturb(tmp_path: Path) -> None:
    model = {"w": whole("Float32", (8,), 1)}
    made = write_set(tmp_path, model, [{"w": split((2,), 0)}])
    for name in ("rank_0_old", "checkpoint_network", "rank_x", "rank_-1"):
        (made.shards / name).mkdir()
        (made.shards / name / "glm2_rank_9-1_9.ckpt").write_bytes(b"junk")
    (made.shards / "rank_0" / "glm2-graph.meta").write_bytes(b"junk")
    (made.shards / "rank_0" / ".hidden-1_9.ckpt").write_bytes(b"junk")
    (made.shards / "notes.txt").write_text("junk")
    assert_whole(merge(made.shards, made.strategy, tmp_path / "out").output, model)


def test_merged_strategy_file_and_json(tmp_path: Path) -> None:
    model = small_model()
    stages = [stage_of(stage) for stage in LAYOUTS["dp2 mp2 pp2"]]
    made = write_set(tmp_path, model, stages, merged_strategy=True)
    assert_whole(merge(made.shards, made.strategy, tmp_path / "a").output, model)
    items = {
        f"{number}-{name}": {
            "dev_matrix": layout.dev_matrix,
            "tensor_map": [axes[0] if axes else -1 for axes in layout.tensor_map],
            "opt_weight_shard_step": layout.opt_shard_step,
            "opt_weight_shard_size": layout.opt_shard_size,
            "field": 0,
        }
        for number, stage in enumerate(stages)
        for name, layout in stage.items()
    }
    text = json.dumps(
        {
            "current_stage": 1,
            "parallel_layout_item": items,
            "parallel_strategy_item": {"MatMul": {"stage": 0}},
        }
    )
    path = tmp_path / "strategy.json"
    path.write_text(text)
    assert_whole(merge(made.shards, path, tmp_path / "b").output, model)


def test_texts_are_kept(tmp_path: Path) -> None:
    content = "глм2".encode("utf-32-le")
    for rank in range(2):
        folder = tmp_path / f"rank_{rank}"
        folder.mkdir()
        (folder / "a-1_1.ckpt").write_bytes(
            ckpt_bytes({"w": whole("Float32", (3,), 1)}) + raw_record("note", [0], "str", content)
        )
    ckpt = merge(tmp_path, None, tmp_path / "out").output
    assert read(ckpt)["note"] == content
    assert index_ckpt(ckpt).tensors["note"].dtype == "str"


def test_long_tensors_are_cut_into_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.checkpoints import mindspore_ckpt

    monkeypatch.setattr(mindspore_ckpt, "SLICE_BYTES", 100)
    model = {"w": whole("Float32", (16, 8), 1), "b": whole("Float16", (16,), 2)}
    layouts = {"w": split((2, 2), 1, 0), "b": split((2, 2), -1)}
    made = write_set(tmp_path, model, [layouts])
    for rank in range(4):
        tensors = {
            n: Whole(t.dtype, np.array(part(t.values, layouts[n], rank), order="C"))
            for n, t in model.items()
        }
        made.file(rank).write_bytes(ckpt_bytes(tensors, slice_bytes=52))
    report = merge(made.shards, made.strategy, tmp_path / "out")
    assert_whole(report.output, model)
    assert len(index_ckpt(report.output).tensors["w"].segments) == 6


def test_manifest_names_the_sources(made: CheckpointSet, tmp_path: Path) -> None:
    report = merge(made.shards, made.strategy, tmp_path / "out")
    manifest = json.loads(report.manifest.read_text())
    assert manifest["step"] == "1_4"
    assert [source["rank"] for source in manifest["sources"]] == list(report.ranks)
    (file,) = manifest["files"]
    assert file["file"] == report.output.name
    assert file["size"] == report.output.stat().st_size == report.nbytes
