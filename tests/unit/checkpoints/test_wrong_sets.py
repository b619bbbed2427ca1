"""Sets that MindSpore's own merger merges into wrong weights without a word: each is refused,
with the rank, the file, the parameter, and what was expected and found. Those whose strategy is
wrong are in ``test_wrong_strategies``."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Dict

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from orchestrator.checkpoints.strategy import Strategy, strategy_bytes
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import (
    CheckpointSet,
    Whole,
    ckpt_bytes,
    raw_record,
    whole,
    write_set,
)
from tests.unit.checkpoints.wrong import (
    DP2_MP2,
    DP4,
    DP4_OPT,
    MODEL,
    MP4,
    flip,
    pipeline,
    refuse,
    rewrite,
)

# One rank from another step


@pytest.mark.parametrize("layouts", [MP4, DP4_OPT, DP4])
def test_one_rank_has_another_step(tmp_path: Path, layouts: Dict[str, Layout]) -> None:
    made = write_set(tmp_path, MODEL, [layouts])
    made.file(2).rename(made.file(2, "1_5"))
    refuse(made, "no step is complete", "rank 2 has 1_5", "ranks 0, 1, 3 have 1_4")


def test_one_rank_holds_another_step_under_the_name_of_this_one(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    other = {**MODEL, "global_step": Whole("Int32", np.array(39, np.int32))}
    rewrite(made, 2, other, MP4)
    refuse(made, "rank 2", "rank_2-1_4.ckpt", "global_step", "expected the same bytes as in rank 0")


# Steps side by side are compared as numbers: test_merge.test_the_latest_complete_step…


# A flipped bit


def test_a_flipped_bit_in_a_file_with_a_crc(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4], crc=True)
    tensor = index_ckpt(made.file(3)).tensors["dense.weight"]
    flip(made.file(3), tensor.segments[0].offset + 5)
    refuse(made, "rank 3", str(made.file(3)), "expected CRC32", "found")


def test_a_flipped_bit_in_a_safetensors_file_with_a_crc(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP4])
    values = MODEL["norm.weight"].values
    crc = zlib.crc32(values.tobytes(), zlib.crc32(b"norm.weight"))
    for rank in range(4):
        path = made.file(rank).with_suffix(".safetensors")
        save_file({"norm.weight": values}, path, metadata={"format": "ms", "crc_num": str(crc)})
        made.file(rank).unlink()
    (made.strategy / "ckpt_strategy_rank_0.ckpt").write_bytes(
        strategy_bytes(Strategy(({"norm.weight": DP4["norm.weight"]},), 4), 0)
    )
    for rank in (1, 2, 3):
        (made.strategy / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    merge(made.shards, made.strategy, tmp_path / "good")
    path = made.file(1).with_suffix(".safetensors")
    flip(path, path.stat().st_size - 1)
    refuse(made, "rank 1", str(path), "expected CRC32")


def test_a_flipped_bit_where_a_replica_shows_it(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [DP2_MP2])
    tensor = index_ckpt(made.file(3)).tensors["dense.weight"]
    flip(made.file(3), tensor.segments[0].offset + 5)
    refuse(
        made, "rank 3", str(made.file(3)), "dense.weight", "expected the same bytes as in rank 1"
    )


def test_a_flipped_bit_in_a_collected_file(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    files = [
        {
            "rank": rank,
            "name": made.file(rank).name,
            "size": made.file(rank).stat().st_size,
            "sha256": "00" * 32,
            "host": "node0",
            "source_mtime_ns": 1,
            "mtime_ns": 1,
        }
        for rank in (2,)
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"steps": {"1_4": {"files": files}}}))
    refuse(made, "rank 2", str(made.file(2)), "expected SHA-256 0000", "found other content")


# Types, shapes and names


def test_another_type_in_one_shard(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    rewrite(made, 2, {**MODEL, "dense.weight": whole("Float32", (8, 32), 2)}, MP4)
    refuse(made, "rank 2", str(made.file(2)), "dense.weight", "expected Float16", "found Float32")


def test_another_shape_in_one_shard(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    rewrite(made, 1, {**MODEL, "dense.weight": whole("Float16", (8, 16), 2)}, MP4)
    refuse(made, "rank 1", "dense.weight", "expected shape [8, 8]", "found [8, 4]")


def test_a_name_that_comes_again_later(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    again = raw_record("norm.weight", [8], "Float32", bytes(32))
    made.file(1).write_bytes(made.file(1).read_bytes() + again)
    refuse(made, str(made.file(1)), "norm.weight", "twice")


def test_a_name_that_comes_twice_in_a_row(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    double = raw_record("x", [8], "Float32", bytes(32)) * 2
    made.file(1).write_bytes(double + made.file(1).read_bytes())
    refuse(made, str(made.file(1)), "parameter x", "expected 32 bytes", "found 64 bytes")


# Redundancy removed


def without_redundancy(tmp_path: Path) -> CheckpointSet:
    """Each slice is in one of the ranks that would hold it, as MindSpore spreads them."""
    made = write_set(tmp_path, MODEL, [DP2_MP2])
    names = list(MODEL)
    for rank in range(4):
        mine = [n for i, n in enumerate(names) if i % 2 == rank // 2]
        rewrite(made, rank, {name: MODEL[name] for name in mine}, DP2_MP2)
    # what all four ranks share is saved by one of them only
    rewrite(made, 1, {"embedding.weight": MODEL["embedding.weight"]}, DP2_MP2)
    rewrite(made, 3, {"dense.weight": MODEL["dense.weight"]}, DP2_MP2)
    return made


def test_redundancy_removed_ckpt(tmp_path: Path) -> None:
    made = without_redundancy(tmp_path)
    with pytest.raises(CheckpointError, match=r"rank 2, .*embedding.weight is missing") as caught:
        merge(made.shards, made.strategy, tmp_path / "out")
    assert "--redundancy-removed" in caught.value.hint


def test_redundancy_removed_is_merged_when_asked_for(tmp_path: Path) -> None:
    made = without_redundancy(tmp_path)
    report = merge(made.shards, made.strategy, tmp_path / "good", redundancy_removed=True)
    data = report.output.read_bytes()
    assert all(tensor.values.tobytes() in data for tensor in MODEL.values())
    rewrite(made, 3, {}, DP2_MP2)
    made.file(3).write_bytes(ckpt_bytes({"x": whole("Float16", (2,), 1)}))
    refuse(made, "dense.weight", "expected 2 different slices, found 1", redundancy_removed=True)


# Pipeline


def test_strategies_of_a_stage_are_missing(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    for rank in (2, 3):
        (made.strategy / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    refuse(made, "a folder of rank 2", "1 pipeline stage of 2 ranks")


def test_strategies_of_the_first_stage_are_missing(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    for rank in (0, 1):
        (made.strategy / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    refuse(made, "no strategy of pipeline stage 0")


def test_a_stage_without_its_ranks(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    made.file(2).unlink()
    made.file(3).unlink()
    refuse(made, "no step is complete", "ranks 2, 3 without")


# Truncation


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    data = made.file(2).read_bytes()
    made.file(2).write_bytes(data[:-cut])
    refuse(made, str(made.file(2)), "is truncated at offset", "good parameter")


def test_a_file_cut_between_two_records(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    rewrite(made, 2, {n: MODEL[n] for n in ("embedding.weight", "dense.weight")}, MP4)
    refuse(made, "rank 2", str(made.file(2)), "found 2 parameters, the last being dense.weight")


def test_an_empty_file(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    made.file(0).write_bytes(b"")
    refuse(made, str(made.file(0)), "is empty")


def test_a_truncated_safetensors_shard_in_a_pipeline(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    for rank in range(4):
        tensors = {}
        for name, tensor in index_ckpt(made.file(rank)).tensors.items():
            (segment,) = tensor.segments
            data = made.file(rank).read_bytes()[segment.offset : segment.offset + segment.length]
            tensors[name] = np.frombuffer(data, np.float16).reshape(tensor.shape)
        save_file(tensors, made.file(rank).with_suffix(".safetensors"))
        made.file(rank).unlink()
    merge(made.shards, made.strategy, tmp_path / "good")
    path = made.file(3).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    refuse(made, str(path), "is truncated", "dense.weight")


# Missing ranks, encrypted files, strays


def test_a_rank_whose_slices_nobody_else_holds(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    made.file(2).unlink()
    refuse(made, "no step is complete", "rank 2 without", "rank 2 has no file")


@pytest.mark.parametrize(
    ("magic", "cipher"),
    [(0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC")],
)
@pytest.mark.parametrize("order", ["<I", ">I"])
def test_an_encrypted_file(tmp_path: Path, magic: int, cipher: str, order: str) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    made.file(1).write_bytes(struct.pack(order, magic) + bytes(100))
    refuse(made, str(made.file(1)), "is encrypted", cipher)


def test_two_files_of_one_step_and_rank(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    other = made.file(1).with_name("other_rank_1-1_4.ckpt")
    other.write_bytes(made.file(1).read_bytes())
    refuse(made, "rank 1 has two files of step 1_4", str(other))


def test_a_file_in_the_folder_of_another_rank(tmp_path: Path) -> None:
    made = write_set(tmp_path, MODEL, [MP4])
    made.file(1).rename(made.file(1).with_name("glm2_rank_3-1_4.ckpt"))
    refuse(made, "lies in the folder of rank 1, but is named for rank 3")


def test_slices_that_are_all_copies_although_moments_are_zero(tmp_path: Path) -> None:
    model = {**MODEL, "adam_m.dense.weight": Whole("Float32", np.zeros((8, 32), np.float32))}
    made = write_set(tmp_path, model, [{**MP4, "adam_m.dense.weight": MP4["dense.weight"]}])
    assert merge(made.shards, made.strategy, tmp_path / "out").tensors == 5
