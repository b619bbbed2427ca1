"""Checkpoints: what is saved is what is loaded, and what does not fit is listed."""

from __future__ import annotations

import functools
import hashlib
import json
import stat
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Dict

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.checkpoint import (
    conclude,
    damage,
    find_weights,
    load_state,
    load_weights,
    read_parameters,
    save_checkpoint,
)
from glm2.config import ModelConfig
from glm2.errors import CheckpointError, ConfigError
from glm2.model import Glm2
from glm2.optimizer import AdamW
from glm2.settings import Optimizer
from glm2.weights import PROGRESS_NAMES, Progress, weight_shapes
from tests.mindspore.glm2.reference import random_weights

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    kv_channels=8,
    num_attention_heads=2,
    multi_query_group_num=1,
    padded_vocab_size=32,
    seq_length=8,
)
PROGRESS = Progress(2, 9, 8, 72, 24, 0xFFFFFFFF, 1024.0, 3)


def altered(**values: int) -> Glm2:
    return Glm2(ModelConfig(**{**vars(CONFIG), **values}))


@pytest.fixture(scope="module")
def model() -> Glm2:
    network = Glm2(CONFIG)
    random_weights(network)
    return network


@pytest.fixture(scope="module")
def optimizer(model: Glm2) -> AdamW:
    found = AdamW(model.trainable_params(), Optimizer())
    draw = np.random.default_rng(5)
    for moment in (*found.m, *found.v):
        moment.set_data(ms.Tensor(draw.random(moment.shape).astype(np.float32)))
    return found


@pytest.fixture(scope="module")
def saved(model: Glm2, optimizer: AdamW, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = (*optimizer.weights, *optimizer.m, *optimizer.v)
    return save_checkpoint(tmp_path_factory.mktemp("saved"), "a_rank_0-2_3", state, PROGRESS)


@pytest.mark.parametrize(
    "values", [{}, {"add_qkv_bias": False}, {"post_layer_norm": False}, {"kv_channels": 4}]
)
def test_the_shapes_are_those_of_the_network(values: Dict[str, int]) -> None:
    network = altered(**values)
    found = {p.name: tuple(p.shape) for p in network.get_parameters()}
    assert list(weight_shapes(network.config).items()) == list(found.items())


def test_weights_come_back_bit_by_bit(model: Glm2, saved: Path) -> None:
    other = altered()
    random_weights(other, seed=9)
    load_weights(other, saved)
    pairs = list(zip(model.get_parameters(), other.get_parameters()))
    assert len(pairs) == 17
    for ours, theirs in pairs:
        assert ours.name == theirs.name
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())


def test_a_file_holds_weights_moments_and_progress(
    model: Glm2, optimizer: AdamW, saved: Path
) -> None:
    found = read_parameters(saved)
    weights = [p.name for p in model.get_parameters()]
    assert "transformer.embedding.embedding_table" in weights
    assert set(found) == {
        *weights,
        *(f"adam_m.{name}" for name in weights),
        *(f"adam_v.{name}" for name in weights),
        *PROGRESS_NAMES,
    }
    for moment in (*optimizer.m, *optimizer.v):
        assert found[moment.name].dtype == ms.float32
        np.testing.assert_array_equal(found[moment.name].asnumpy(), moment.asnumpy())
    read = Progress(*(found[name].asnumpy().item() for name in PROGRESS_NAMES))
    assert read == PROGRESS


def test_only_its_owner_reads_it_and_nothing_half_written_is_left(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert list(saved.parent.iterdir()) == [saved]


class TestResumedState:
    def test_it_is_what_was_saved(self, optimizer: AdamW, saved: Path) -> None:
        assert damage(saved) == ""
        other = AdamW(altered().trainable_params(), Optimizer())
        state = (*other.weights, *other.m, *other.v)
        assert load_state(state, saved) == PROGRESS
        for ours, theirs in zip((*optimizer.weights, *optimizer.m, *optimizer.v), state):
            assert ours.name == theirs.name
            np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())

    def test_weights_alone_are_no_state(
        self, model: Glm2, optimizer: AdamW, tmp_path: Path
    ) -> None:
        file = tmp_path / "weights.ckpt"
        ms.save_checkpoint([{"name": p.name, "data": p} for p in model.get_parameters()], str(file))
        with pytest.raises(
            CheckpointError, match=r"(?s)missing adam_m.*missing step_num"
        ) as caught:
            load_state((*optimizer.weights, *optimizer.m, *optimizer.v), file)
        assert "without resume_training" in caught.value.hint
        assert damage(file) == "it is cut off", "it has no checksum"

    def test_another_type_is_refused(self, saved: Path) -> None:
        half = Glm2(ModelConfig(**{**vars(CONFIG), "param_init_type": "float16"}))
        other = AdamW(half.trainable_params(), Optimizer())
        with pytest.raises(CheckpointError, match="weight is Float32, the model needs Float16"):
            load_state((*other.weights, *other.m, *other.v), saved)

    @given(st.data())
    def test_every_changed_bit_and_every_cut_is_found(
        self, saved: Path, scratch: Path, data: st.DataObject
    ) -> None:
        content = bytearray(saved.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[place:]
        scratch.write_bytes(content)
        assert damage(scratch)

    @pytest.fixture(scope="class")
    @classmethod
    def scratch(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("damaged") / "a_rank_0-2_3.ckpt"


def test_weights_are_loaded_in_the_type_of_the_model(model: Glm2, saved: Path) -> None:
    half = Glm2(ModelConfig(**{**vars(CONFIG), "param_init_type": "float16"}))
    load_weights(half, saved)
    name = "transformer.output_layer.weight"
    ours = {p.name: p for p in half.get_parameters()}[name]
    theirs = {p.name: p for p in model.get_parameters()}[name]
    assert ours.dtype == ms.float16
    np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy().astype(np.float16))


def test_safetensors_are_read_too(model: Glm2, tmp_path: Path) -> None:
    records = [{"name": p.name, "data": p} for p in model.get_parameters()]
    ms.save_checkpoint(records, str(tmp_path / "weights"), format="safetensors")
    other = altered()
    load_weights(other, tmp_path / "weights.safetensors")
    for ours, theirs in zip(model.get_parameters(), other.get_parameters()):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())


class TestMisfit:
    def test_every_weight_of_another_shape_is_listed(self, saved: Path) -> None:
        with pytest.raises(CheckpointError) as caught:
            load_weights(altered(ffn_hidden_size=20), saved)
        message = caught.value.message
        mlp = "transformer.encoder.layers.0-1.mlp"
        assert message.splitlines()[1:] == [
            f"    {mlp}.dense_h_to_4h.weight is [48, 16], the model needs [40, 16]",
            f"    {mlp}.dense_4h_to_h.weight is [16, 24], the model needs [16, 20]",
        ]

    def test_missing_and_unexpected_weights_are_listed(self, saved: Path) -> None:
        with pytest.raises(CheckpointError, match=r"missing .*layers\.2\.input_layernorm"):
            load_weights(altered(num_layers=3), saved)
        with pytest.raises(CheckpointError, match=r"unexpected .*layers\.1\.input_layer"):
            load_weights(altered(num_layers=1), saved)

    def test_a_model_that_is_refused_is_not_changed(self, saved: Path) -> None:
        other = altered(ffn_hidden_size=20)
        before = random_weights(other)
        with pytest.raises(CheckpointError):
            load_weights(other, saved)
        for parameter in other.get_parameters():
            np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])

    @pytest.mark.parametrize("end", [".ckpt", ".safetensors"])
    # MindSpore leaves a damaged file open.
    @pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO.*weights.safetensors")
    def test_a_damaged_file_is_said_to_be_damaged(
        self, model: Glm2, tmp_path: Path, end: str
    ) -> None:
        file = tmp_path / f"weights{end}"
        records = [{"name": p.name, "data": p} for p in model.get_parameters()]
        ms.save_checkpoint(records, str(tmp_path / "weights"), format=end[1:])
        file.chmod(0o600)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=f"weights{end} cannot be read as weights"):
            load_weights(altered(), file)


class TestKeep:
    def test_the_newest_by_number_stay(self, tmp_path: Path) -> None:
        parameter = [ms.Parameter(ms.Tensor([1.0]), name="w")]
        for step in (2, 9, 10):
            save_checkpoint(tmp_path, f"a_rank_0-1_{step}", parameter, Progress())
        save_checkpoint(tmp_path, "b_rank_0-1_1", parameter, Progress())
        conclude(save_checkpoint(tmp_path, "a_rank_0-2_1", parameter, Progress()), 2)
        assert json.loads((tmp_path / "meta.json").read_text()) == {
            "last_epoch": 2,
            "last_step": 1,
            "last_ckpt_file": "a_rank_0-2_1.ckpt",
        }
        assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == [
            "a_rank_0-1_10.ckpt",
            "a_rank_0-2_1.ckpt",
            "b_rank_0-1_1.ckpt",
        ]


class TestFindWeights:
    def test_a_name_is_looked_for_among_the_downloads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "checkpoint_download" / "glm2" / "glm2_6b.ckpt"
        with pytest.raises(ConfigError, match="no weights glm2_6b") as caught:
            find_weights("glm2_6b")
        assert "checkpoint_download/glm2" in caught.value.hint
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
        assert find_weights("glm2_6b").resolve() == file

    def test_a_released_one_is_fetched_from_where_the_environment_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "web").mkdir()
        (tmp_path / "web" / "glm2_6b.ckpt").write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        (tmp_path / "web" / "glm2_6b.ckpt.sha256").write_text(f"{digest}  glm2_6b.ckpt\n")
        monkeypatch.chdir(tmp_path)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            monkeypatch.setenv("GLM2_DOWNLOAD_URL", f"http://127.0.0.1:{server.server_port}")
            try:
                assert find_weights("glm2_6b").read_bytes() == b"weights"
            finally:
                server.shutdown()
                thread.join()
        with pytest.raises(ConfigError, match="no weights another"):
            find_weights("another")

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "weights.bin"
        file.write_bytes(b"")
        with pytest.raises(ConfigError, match="is no checkpoint"):
            find_weights(str(file))
