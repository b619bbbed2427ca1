"""Conversion against MindSpore's own files: what it writes is read, what is written it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import mindspore as ms
import numpy as np
import pytest

from glm2.checkpoint import load_weights, read_parameters
from glm2.config import ModelConfig
from glm2.convert import convert, select
from glm2.errors import CheckpointError
from glm2.formats.source import find_source
from glm2.model import Glm2
from glm2.weights import INV_FREQ
from tests.mindspore.glm2.reference import random_weights
from tests.unit.glm2.weight_files import CONFIG, official

LIMIT = 10**9


@pytest.fixture(scope="module")
def state() -> Dict[str, Any]:
    torch = pytest.importorskip("torch")
    found: Dict[str, Any] = official(torch, "float16")
    return found


@pytest.fixture(scope="module")
def released(state: Dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the guide's script makes ``glm2_6b.ckpt`` of the official weights."""
    records = []
    for name, value in state.items():
        if "word_embeddings.weight" in name:
            name = name.replace("word_embeddings.weight", "embedding_table")
        records.append({"name": name, "data": ms.Tensor(value.numpy())})
    file = tmp_path_factory.mktemp("released") / "glm2_6b.ckpt"
    ms.save_checkpoint(records, str(file))
    return file


def test_a_released_checkpoint_loads_unchanged(state: Dict[str, Any], released: Path) -> None:
    network = Glm2(ModelConfig(**{**vars(CONFIG), "param_init_type": "float16", "seq_length": 8}))
    load_weights(network, released)
    for parameter in network.get_parameters():
        theirs = state[parameter.name.replace("embedding_table", "word_embeddings.weight")]
        np.testing.assert_array_equal(parameter.asnumpy(), theirs.numpy())


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_mindspore_reads_what_is_written(
    state: Dict[str, Any], released: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"new.{kind}"
    convert(select(find_source(released), CONFIG), file, kind, LIMIT)
    found = read_parameters(file)
    assert len(found) == len(state) - 1
    for name, value in read_parameters(released).items():
        if name != INV_FREQ:
            assert found[name].dtype == ms.float16
            np.testing.assert_array_equal(found[name].asnumpy(), value.asnumpy())


def test_a_ckpt_is_mindspores_byte_for_byte(tmp_path: Path) -> None:
    network = Glm2(ModelConfig(**{**vars(CONFIG), "seq_length": 8}))
    random_weights(network)
    records = [{"name": p.name, "data": p} for p in network.get_parameters()]
    ms.save_checkpoint(records, str(tmp_path / "theirs.ckpt"))
    convert(
        select(find_source(tmp_path / "theirs.ckpt"), CONFIG), tmp_path / "a.ckpt", "ckpt", LIMIT
    )
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_bfloat16_scalars_and_optimizer_state_of_mindspore(tmp_path: Path, kind: str) -> None:
    """A checkpoint of training: the weights are taken, the rest is named as left out."""
    network = Glm2(ModelConfig(**{**vars(CONFIG), "param_init_type": "bfloat16", "seq_length": 8}))
    records = [{"name": p.name, "data": p} for p in network.get_parameters()]
    records += [
        {"name": f"adam_m.{p.name}", "data": ms.Tensor(np.zeros(p.shape, np.float32))}
        for p in network.get_parameters()
    ]
    records.append({"name": "step_num", "data": ms.Tensor(np.array(7, np.int64))})
    file = tmp_path / f"train.{kind}"
    ms.save_checkpoint(records, str(file.with_suffix("")), format=kind)
    weights = select(find_source(file), CONFIG)
    assert weights.dtype == "bfloat16"
    assert len(weights.left_out) == len(weights.tensors) + 1
    found = {tensor.name: b"".join(tensor.blocks()) for tensor in weights.tensors}
    for parameter in network.get_parameters():
        exact = parameter.astype(ms.float32).asnumpy().view(np.uint32) >> 16
        assert found[parameter.name] == exact.astype("<u2").tobytes()


def test_a_checksum_is_compared(tmp_path: Path) -> None:
    records = [{"name": "w", "data": ms.Tensor(np.arange(100, dtype=np.float32))}]
    ms.save_checkpoint(records, str(tmp_path / "a.ckpt"), crc_check=True)
    assert list(find_source(tmp_path / "a.ckpt").tensors) == ["w"]
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[200] ^= 1
    (tmp_path / "b.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not have the checksum"):
        find_source(tmp_path / "b.ckpt")
