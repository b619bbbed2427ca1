"""What we write is what MindSpore writes, byte for byte, and MindSpore reads it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Dict

import mindspore as ms
import numpy as np
import pytest

from orchestrator.checkpoints.checkpoint import Reading, open_checkpoint
from orchestrator.checkpoints.diff import diff
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.checkpoints.strategy import load_strategy, strategy_bytes
from orchestrator.checkpoints.target import Words
from orchestrator.errors import CheckpointError
from tests.mindspore.checkpoints.reference import CASES

pytestmark = pytest.mark.mindspore


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All reference sets, made by MindSpore in a process of its own."""
    root = tmp_path_factory.mktemp("reference")
    subprocess.run(
        [sys.executable, "-m", "tests.mindspore.checkpoints.reference", str(root)],
        check=True,
        cwd=Path(__file__).parents[3],
        timeout=200,
    )
    return root


def tensors(path: Path) -> Dict[str, bytes]:
    data = path.read_bytes()
    return {
        name: repr((t.dtype, t.shape)).encode()
        + b"".join(data[offset : offset + length] for offset, length in t.segments)
        for name, t in index_file(path).tensors.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_merged_files_are_identical(made: Path, tmp_path: Path, case: str) -> None:
    root = made / case
    report = merge(root / "checkpoint", root / "strategy", tmp_path)
    theirs = root / "whole" / "rank_0" / "checkpoint_0.ckpt"
    assert report.output.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_strategies_that_mindspore_merged_are_read_alike(made: Path, case: str) -> None:
    merged = load_strategy(made / case / "merged.ckpt")
    assert merged.stages == load_strategy(made / case / "strategy").stages


def test_strategies_that_we_write_are_merged_by_mindspore(made: Path, tmp_path: Path) -> None:
    strategy = load_strategy(made / "dp2_mp2_pp2" / "strategy")
    for rank in range(strategy.world_size):
        path = tmp_path / "one" / f"ckpt_strategy_rank_{rank}.ckpt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(strategy_bytes(strategy, strategy.stage_of(rank)))
    ms.merge_pipeline_strategys(str(tmp_path / "one"), str(tmp_path / "theirs.ckpt"))
    (tmp_path / "ours.ckpt").write_bytes(strategy_bytes(strategy))
    assert load_strategy(tmp_path / "theirs.ckpt").stages == strategy.stages
    assert load_strategy(tmp_path / "ours.ckpt").stages == strategy.stages
    layout = ms.build_searched_strategy(str(tmp_path / "ours.ckpt"))
    assert set(layout) == {f"{i}-{n}" for i, stage in enumerate(strategy.stages) for n in stage}


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.target])
def test_resharded_files_hold_the_same(made: Path, tmp_path: Path, case: str) -> None:
    root = made / case
    report = merge(root / "checkpoint", root / "strategy", tmp_path, target=root / "target.ckpt")
    ranks = load_strategy(root / "target.ckpt").world_size
    assert len(report.files) == ranks
    for rank in range(ranks):
        name = f"rank_{rank}/checkpoint_{rank}.ckpt"
        assert tensors(tmp_path / name) == tensors(root / "resharded" / name)


def test_a_layout_in_words_is_resharded_by_mindspore_alike(made: Path, tmp_path: Path) -> None:
    root = made / "mp4"
    merge(root / "checkpoint", root / "strategy", tmp_path / "out", target=Words(2, 2, True))
    (tmp_path / "target.ckpt").write_bytes(
        strategy_bytes(load_strategy(tmp_path / "out" / "strategy"))
    )
    ms.transform_checkpoints(
        str(root / "checkpoint"),
        str(tmp_path / "theirs"),
        "checkpoint_",
        str(root / "merged.ckpt"),
        str(tmp_path / "target.ckpt"),
    )
    for rank in range(4):
        name = f"rank_{rank}/checkpoint_{rank}.ckpt"
        assert tensors(tmp_path / "out" / name) == tensors(tmp_path / "theirs" / name)


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_mindspore_reads_what_we_write(made: Path, tmp_path: Path, fmt: str) -> None:
    root = made / "dp2_mp2_opt"
    ours = merge(
        root / "checkpoint", root / "strategy", tmp_path, fmt=fmt, crc=True, verify=True
    ).output
    if fmt == "safetensors":  # MindSpore cannot compute the checksum of bfloat16
        ours = merge(root / "checkpoint", root / "strategy", tmp_path, fmt=fmt).output
    found = ms.load_checkpoint(str(ours), format=fmt, crc_check=fmt == "ckpt")
    theirs = ms.load_checkpoint(str(root / "whole" / "rank_0" / "checkpoint_0.ckpt"))
    assert set(found) == set(theirs)
    for name, value in theirs.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        mine, yours = (p.astype(ms.float32).asnumpy() for p in (found[name], value))
        assert np.array_equal(mine, yours)


def test_mindspore_checks_the_crc_that_we_write(made: Path, tmp_path: Path) -> None:
    ours = merge(made / "other" / "crc.safetensors", None, tmp_path / "a.safetensors", crc=True)
    assert ms.load_checkpoint(str(ours.output), format="safetensors", crc_check=True)
    data = bytearray(ours.output.read_bytes())
    data[-1] ^= 1
    ours.output.write_bytes(data)
    with pytest.raises(ValueError, match="crc"):
        ms.load_checkpoint(str(ours.output), format="safetensors", crc_check=True)


@pytest.mark.parametrize("name", ["crc.ckpt", "crc.safetensors"])
def test_we_check_the_crc_that_mindspore_writes(made: Path, tmp_path: Path, name: str) -> None:
    good = made / "other" / name
    assert index_file(good).crc is not None
    merge(good, None, tmp_path / name)
    bad = tmp_path / "bad" / name
    bad.parent.mkdir()
    data = bytearray(good.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    bad.write_bytes(data)
    with pytest.raises(CheckpointError, match="expected CRC32"):
        merge(bad, None, tmp_path / "again" / name)


def test_a_file_with_a_crc_is_written_as_mindspore_writes_it(made: Path, tmp_path: Path) -> None:
    ours = merge(made / "other" / "plain.ckpt", None, tmp_path / "a.ckpt", crc=True)
    assert ours.output.read_bytes() == (made / "other" / "crc.ckpt").read_bytes()


@pytest.mark.parametrize("cipher", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_encrypted_files_are_recognised(made: Path, cipher: str) -> None:
    with pytest.raises(CheckpointError, match=rf"is encrypted \({cipher}\)"):
        index_file(made / "other" / f"{cipher}.ckpt")


def test_texts_and_numbers_of_append_dict(made: Path, tmp_path: Path) -> None:
    texts = made / "other" / "texts.ckpt"
    ours = merge(texts, None, tmp_path / "a.ckpt").output
    assert ours.read_bytes() == texts.read_bytes()
    assert ms.load_checkpoint(str(ours))["note"] == "текст"
    metadata = index_file(merge(texts, None, tmp_path / "a.safetensors").output).metadata
    assert metadata["note"] == "текст"


def test_diff_of_a_cut_set_and_mindsporess_merged_file(made: Path) -> None:
    root = made / "mp4"
    cut = open_checkpoint(root / "checkpoint", root / "strategy")
    merged = open_checkpoint(root / "whole" / "rank_0" / "checkpoint_0.ckpt", None)
    found = diff(cut, merged)
    assert found.same
    assert found.equal == len(merged.tensors)
    weights = open_checkpoint(
        root / "checkpoint", root / "strategy", Reading(include_optimizer=False)
    )
    assert len(diff(weights, merged).only_b) == 8
