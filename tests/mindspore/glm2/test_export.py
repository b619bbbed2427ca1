"""Exported graphs against the network that they come from, float and int8."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from glm2.config import IGNORED_LABEL, ModelConfig
from glm2.errors import ConfigError
from glm2.export import export
from glm2.generate import Generator
from glm2.infer import Exported
from glm2.infer_section import Graphs
from glm2.model import Glm2
from glm2.quantize import perplexity, quantize, quantized
from glm2.runtimes import find_runtime, loader
from glm2.sampling import GREEDY
from glm2.settings import Device
from glm2.tokenizer import build_prompt
from tests.mindspore.glm2.reference import random_weights
from tests.mindspore.glm2.worker import Workers

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    kv_channels=8,
    num_attention_heads=4,
    multi_query_group_num=2,
    padded_vocab_size=61,
    seq_length=20,
    batch_size=2,
    max_decode_length=20,
    eos_token_id=60,
)
CPU = Device(target="CPU")
PROMPTS = [[5, 6, 7, 8, 9], [3, 4, 5]]


def make(**values: Any) -> Glm2:
    network = Glm2(dataclasses.replace(CONFIG, **values))
    random_weights(network)
    return network


def graphs_in(folder: Path) -> Graphs:
    return Graphs(folder / "p.mindir", folder / "deeper" / "i.mindir")


def exported(network: Glm2, folder: Path, weights: str = "float32") -> Exported:
    """The network by way of its files."""
    (folder / "deeper").mkdir(exist_ok=True)
    export(network, graphs_in(folder), "CPU", weights)
    return Exported.load(graphs_in(folder), network.config, loader("mindspore", CPU))


def tokens(model: Exported, prompts: Sequence[Sequence[int]], count: int) -> List[List[int]]:
    return [list(row) for row in zip(*model.stream(prompts, GREEDY, count))]


def generated(network: Glm2, prompts: Sequence[Sequence[int]], count: int) -> List[List[int]]:
    generator = Generator(network, batch=len(prompts), width=5, capacity=20)
    return [list(row) for row in zip(*generator.stream(prompts, GREEDY, count))]


@pytest.fixture(scope="module")
def network() -> Glm2:
    return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def model(network: Glm2, folder: Path) -> Exported:
    """The network, exported to ``folder`` in the place of another."""
    small = make(num_layers=1)
    (folder / "deeper").mkdir()
    export(small, graphs_in(folder), "CPU", "float32")
    return exported(network, folder)


class TestGraphs:
    def test_the_greedy_tokens_of_the_network(self, network: Glm2, model: Exported) -> None:
        expected = generated(network, PROMPTS, 15)
        assert tokens(model, PROMPTS, 15) == expected
        assert len({*expected[0], *expected[1]}) > 5
        # A row does not depend on the other.
        assert tokens(model, [PROMPTS[1]], 15) == expected[1:]

    def test_the_logits_of_the_network_at_every_step(self, network: Glm2, model: Exported) -> None:
        ids = np.random.default_rng(2).integers(0, 61, (2, 20)).astype(np.int32)
        whole = network(ms.Tensor(ids)).asnumpy()
        logits, *caches = model.prefill.run([ids, np.array([3, 11], np.int32)])
        first = model.prefill.to_numpy(logits)
        np.testing.assert_allclose(first, whole[[0, 1], [2, 10]], atol=2e-5)
        for step in range(9):
            position = np.array([3 + step, 11 + step], np.int32)
            token = ids[[0, 1], position]
            logits, *caches = model.increment.run([token, position, *caches])
            expected = whole[[0, 1], position]
            np.testing.assert_allclose(model.increment.to_numpy(logits), expected, atol=2e-5)

    @pytest.mark.parametrize(
        "values",
        [
            {"compute_dtype": "float16", "param_init_type": "float16", "batch_size": 1},
            {"multi_query_attention": False, "post_layer_norm": False, "add_qkv_bias": False},
        ],
    )
    def test_other_networks(self, tmp_path: Path, values: Dict[str, Any]) -> None:
        network = make(**values)
        prompts = PROMPTS[: network.config.batch_size]
        found = tokens(exported(network, tmp_path), prompts, 8)
        assert found == generated(network, prompts, 8)

    def test_an_export_replaces_another(self, model: Exported, folder: Path) -> None:
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
        assert names == ["deeper", "deeper/i.mindir", "p.json", "p.mindir"]
        manifest = json.loads((folder / "p.json").read_text("utf-8"))
        assert ModelConfig(**manifest["model_config"]) == CONFIG
        assert (manifest["weights"], manifest["increment"]) == ("float32", "deeper/i.mindir")
        assert manifest["device_target"] == "CPU"

    def test_an_export_that_ends_half_way_leaves_the_one_before(
        self, network: Glm2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def content() -> Dict[str, bytes]:
            return {str(f): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}

        exported(make(num_layers=1), tmp_path)
        before = content()
        assert len(before) == 3

        def until_the_second(cell: Any, *inputs: Any, **options: Any) -> None:
            if type(cell).__name__ == "Increment":
                raise KeyboardInterrupt
            write(cell, *inputs, **options)

        write = ms.export
        monkeypatch.setattr(ms, "export", until_the_second)
        with pytest.raises(KeyboardInterrupt):
            export(network, graphs_in(tmp_path), "CPU", "float32")
        assert content() == before

    def test_a_damaged_graph(self, tmp_path: Path) -> None:
        (tmp_path / "p.mindir").write_bytes(b"no graph")
        (tmp_path / "i.mindir").write_bytes(b"no graph")
        graphs = Graphs(tmp_path / "p.mindir", tmp_path / "i.mindir")
        with pytest.raises(ConfigError, match=r"p\.mindir cannot be loaded"):
            Exported.load(graphs, CONFIG, loader("mindspore", CPU))


class LiteModel:
    """``mindspore_lite.Model`` on MindSpore, with the two habits of Lite 2.0 that were seen:
    it uses the arrays of its inputs in place, and its outputs are overwritten by the next run.
    """

    def build_from_file(self, path: str, kind: str, context: Any, config_path: str = "") -> None:
        if not Path(path).is_file():
            raise RuntimeError("build_from_file failed, model_path does not exist!")
        assert (kind, context.target, config_path) == ("MINDIR", ["cpu"], "lite.ini")
        self.cell = ms.nn.GraphCell(ms.load(path))
        self.outputs: List[LiteTensor] = []
        self.inputs = [LiteTensor() for _ in range(2 + 4 * ("i.mindir" in path))]

    def get_inputs(self) -> List[LiteTensor]:
        return self.inputs

    def predict(self, inputs: List[LiteTensor]) -> List[LiteTensor]:
        found = self.cell(*(ms.Tensor(tensor.array) for tensor in inputs))
        self.outputs = self.outputs or [LiteTensor(np.empty_like(x.asnumpy())) for x in found]
        for old, new in zip(self.outputs, found):
            old.array[...] = new.asnumpy()
        return self.outputs


class LiteTensor:
    def __init__(self, array: Any = None) -> None:
        self.array = array

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        self.array = array

    def get_data_to_numpy(self) -> np.ndarray:
        return self.array


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mindspore_lite")
    module.__spec__ = types.SimpleNamespace(name="mindspore_lite")  # type: ignore[assignment]
    module.Model = LiteModel  # type: ignore[attr-defined]
    module.ModelType = types.SimpleNamespace(MINDIR="MINDIR")  # type: ignore[attr-defined]
    module.Context = types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mindspore_lite", module)


def test_lite_is_used_where_it_is_installed(
    lite: None, network: Glm2, model: Exported, folder: Path, tmp_path: Path
) -> None:
    assert find_runtime() == "lite"
    load = loader("lite", CPU, "lite.ini")
    found = tokens(Exported.load(graphs_in(folder), CONFIG, load), PROMPTS, 15)
    assert found == generated(network, PROMPTS, 15)
    with pytest.raises(ConfigError, match="there is no graph"):
        Exported.load(graphs_in(tmp_path), CONFIG, load)
    with pytest.raises(ConfigError, match=r"absent\.mindir cannot be loaded: build_from_file"):
        load(tmp_path / "absent.mindir")


class TestInt8:
    @given(arrays.arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)))
    def test_no_weight_is_off_by_more_than_half_a_step(self, weight: np.ndarray) -> None:
        levels, scale = quantized(weight)
        assert (levels.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (3, 1))
        assert levels.min() >= -127
        tolerance = scale.astype(np.float64) * 0.5001 + 1e-37
        assert (np.abs(levels * scale.astype(np.float64) - weight) <= tolerance).all()
        largest = np.abs(weight).max(1)
        assert (np.abs(levels).max(1)[largest > 1e-30] == 127).all()

    def test_the_graphs_compute_with_int8_weights(self, network: Glm2, tmp_path: Path) -> None:
        plain, network, with_levels = network, make(), make()
        for parameter in with_levels.get_parameters():
            if parameter.name.endswith("weight") and parameter.ndim == 2:
                levels, scale = quantized(parameter.asnumpy())
                parameter.set_data(ms.Tensor(levels * scale))
        assert quantize(network) == 4 * 2 + 1
        ids = ms.Tensor(np.arange(40, dtype=np.int32).reshape(2, 20))
        logits = network(ids).asnumpy()
        np.testing.assert_allclose(logits, with_levels(ids).asnumpy(), atol=2e-5)
        assert np.abs(logits - plain(ids).asnumpy()).max() > 1e-3
        model = exported(network, tmp_path, "int8")
        assert tokens(model, PROMPTS, 15) == generated(with_levels, PROMPTS, 15)
        names = {p.name: p.dtype for p in network.get_parameters()}
        layer = "transformer.encoder.layers.1.self_attention.query_key_value"
        assert names[f"{layer}.weight"] == ms.int8
        assert names[f"{layer}.scale"] == ms.float32
        assert names[f"{layer}.bias"] == ms.float32

    def test_perplexity_is_that_of_the_learned_tokens(self, network: Glm2) -> None:
        draw = np.random.default_rng(4)
        batches = []
        losses: List[float] = []
        for _ in range(2):
            ids = draw.integers(0, 61, (2, 20)).astype(np.int32)
            labels = np.where(draw.random((2, 20)) < 0.5, ids, IGNORED_LABEL).astype(np.int32)
            batches.append((ids, labels))
            logits = network(ms.Tensor(ids)).asnumpy().astype(np.float64)
            odds = np.exp(logits - logits.max(-1, keepdims=True))
            odds /= odds.sum(-1, keepdims=True)
            for row in range(2):
                for at in range(1, 20):
                    if labels[row, at] != IGNORED_LABEL:
                        losses.append(-np.log(odds[row, at - 1, labels[row, at]]))
        expected = np.exp(np.mean(losses))
        assert perplexity(network, batches) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
class TestCommands:
    """The commands on a trained model: what ``infer`` says is what ``predict`` says."""

    PROMPTS = (build_prompt("类型#裙*颜色#黑色"), build_prompt("类型#裤"))
    CHECKPOINT = "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt"

    def run(
        self, workers: Workers, folder: Path, *words: str, typed: str = "", **variables: str
    ) -> Tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "glm2", *words],
            cwd=folder,
            env={**workers.environ, **variables},
            input=typed,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    def texts(self, out: str) -> List[str]:
        lines = [line for line in out.splitlines() if line.startswith("[{")]
        return [ast.literal_eval(line)[0]["text_generation_text"][0] for line in lines]

    def test_infer_says_what_predict_says(
        self, workers: Workers, alone: Path, tmp_path: Path
    ) -> None:
        weights = ("--load_checkpoint", str(alone / self.CHECKPOINT))
        data = [word for prompt in self.PROMPTS for word in ("--predict_data", prompt)]
        tiny = ("--config", "tiny_cpu")
        self.run(workers, tmp_path, "export", *tiny, *weights, GLM2_OUTPUT_DIR="out")
        assert sorted(p.name for p in (tmp_path / "out/glm2_export").iterdir()) == [
            "glm2_tiny_inc.mindir", "glm2_tiny_prefill.json", "glm2_tiny_prefill.mindir"
        ]  # fmt: skip
        predicted, _ = self.run(workers, tmp_path, *tiny, "--run_mode", "predict", *weights, *data)
        answered, said = self.run(workers, tmp_path, "infer", *tiny, *data, "--output_dir", "out")
        assert self.texts(answered) == self.texts(predicted)
        assert "mindspore on CPU" in said
        typed, _ = self.run(
            workers, tmp_path, "infer", "--output_dir", "out", *tiny,
            typed="\n类型#裙*颜色#黑色\n" + self.PROMPTS[1].replace("\n", "\\n") + "\n",
        )  # fmt: skip
        for prompt, text in zip(self.PROMPTS, self.texts(answered)):
            assert text[len(prompt) :].strip() in typed

    def test_int8_reports_its_cost(
        self, workers: Workers, alone: Path, data: Path, tmp_path: Path
    ) -> None:
        rows = (data / "all" / "dev.json").read_text("utf-8")
        (tmp_path / "dev.json").write_text(f"{rows}oops\n", "utf-8")
        out, err = self.run(
            workers, tmp_path, "export", "--config", "tiny_cpu", "--int8",
            "--eval_dataset_dir", ".", "--load_checkpoint", str(alone / self.CHECKPOINT),
            GLM2_RANK_DIR=str(tmp_path),
        )  # fmt: skip
        manifest = json.loads((tmp_path / "glm2_export/glm2_tiny_prefill_int8.json").read_text())
        quality = manifest["quality"]
        assert quality["rows"] == 40
        assert "dev.json: 1 lines are no rows and left out: line 41" in err
        assert abs(quality["cost_percent"]) < 2
        assert quality["cost_percent"] == pytest.approx(
            100 * (quality["perplexity_int8"] / quality["perplexity"] - 1)
        )
        assert quality["perplexity_int8"] != quality["perplexity"]
        assert f"with int8 weights {quality['perplexity_int8']:.4f}" in out
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(x)["result"] for x in lines if "result" in x] == [quality]
        data = ("--predict_data", self.PROMPTS[0])
        paths = (
            "--prefill_model_path", "glm2_export/glm2_tiny_prefill_int8.mindir",
            "--increment_model_path", "glm2_export/glm2_tiny_inc_int8.mindir",
        )  # fmt: skip
        (text,) = self.texts(
            self.run(
                workers, tmp_path, "infer", *paths, "--tokenizer", "sample:tokenizer.model", *data
            )[0]
        )
        assert text.startswith(self.PROMPTS[0])
        assert len(text) > len(self.PROMPTS[0])
