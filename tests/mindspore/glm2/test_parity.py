"""The network, its gradients and its optimizer against PyTorch's independent implementation.

``GlmForCausalLM`` of Hugging Face transformers is of the same family; see ``oracle.py``. All in
float32. The limits are small because a wrong network can be near: with a wrong epsilon in
RMSNorm the best token stays the same, and the logits of a tiny network move by 2e-4.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Mapping, Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from glm2.config import IGNORED_LABEL, ModelConfig
from glm2.generate import Generator, Sampling
from glm2.model import Glm2, learned_tokens, next_token_loss
from glm2.optimizer import AdamW
from glm2.settings import Optimizer
from glm2.tokenizer import pad_left
from glm2.weights import weight_shapes

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="PyTorch and transformers are not installed (extra: test)",
)

Arrays = Dict[str, np.ndarray]
ORACLE = Path(__file__).with_name("oracle.py")
RATE, NEW = 1e-3, 6
PADDING, PROMPT = 3, 5

TINY = ModelConfig(
    num_layers=2, hidden_size=24, ffn_hidden_size=40, kv_channels=8, num_attention_heads=4,
    multi_query_group_num=2, padded_vocab_size=61, seq_length=12,
)  # fmt: skip
CONFIGS = {
    "one_group_odd_sizes": dataclasses.replace(
        TINY, num_layers=3, hidden_size=21, ffn_hidden_size=27, kv_channels=12,
        num_attention_heads=5, multi_query_group_num=1, padded_vocab_size=53, seq_length=13,
    ),
    "two_groups": TINY,
    "a_group_each_head": dataclasses.replace(
        TINY, kv_channels=4, num_attention_heads=3, multi_query_group_num=3, padded_vocab_size=67,
        seq_length=17, layernorm_epsilon=1e-6,
    ),
    "larger": ModelConfig(
        num_layers=8, hidden_size=512, ffn_hidden_size=1408, kv_channels=64,
        num_attention_heads=8, multi_query_group_num=2, padded_vocab_size=512, seq_length=40,
    ),
}  # fmt: skip
SMALL = [name for name in CONFIGS if name != "larger"]
ALL = [*SMALL, pytest.param("larger", marks=pytest.mark.slow)]


def steps(name: str) -> int:
    """Steps of training to compare. More of them tell nothing more of a large network: AdamW
    turns the rounding of near-zero gradients into whole steps."""
    return 2 if name == "larger" else 3


def logit_limit(name: str) -> float:
    return 1e-4 if name == "larger" else 2e-5


def random_weights(config: ModelConfig, draw: np.random.Generator) -> Arrays:
    """Weights of which each one matters to the result."""
    weights: Arrays = {}
    for name, shape in weight_shapes(config).items():
        if "layernorm" in name:
            value = draw.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = draw.normal(0.0, 0.5, shape)
        else:
            value = draw.normal(0.0, 0.5 if "embedding" in name else shape[1] ** -0.5, shape)
        weights[name] = value.astype(np.float32)
    return weights


def inputs(config: ModelConfig, draw: np.random.Generator) -> Arrays:
    """A batch of training, the second row padded on the right, and prompts padded on the left."""
    length = config.seq_length
    ids = draw.integers(1, config.padded_vocab_size, (2, length)).astype(np.int32)
    ids[1, length - PADDING :] = 0
    labels = ids.copy()
    labels[:, :PROMPT] = IGNORED_LABEL
    labels[1, length - PADDING :] = IGNORED_LABEL
    seen = np.ones_like(ids)
    seen[1, length - PADDING :] = 0
    prompts = [list(map(int, ids[0, :PROMPT])), list(map(int, ids[1, : PROMPT - 2]))]
    return {
        "ids": ids,
        "labels": labels,
        "seen": seen,
        "prompts": np.array(pad_left(prompts, PROMPT, 0)),
        "prompts_seen": np.array([[1] * PROMPT, [0] * 2 + [1] * (PROMPT - 2)]),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it is asked, and what PyTorch answered."""

    config: ModelConfig
    weights: Arrays
    asked: Arrays
    answer: Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of a name; PyTorch is asked once for all small ones, and for a large one alone."""
    cases: Dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in cases:
            folder = tmp_path_factory.mktemp("oracle")
            names = SMALL if name in SMALL else [name]
            given = {name: write_case(folder, name) for name in names}
            script = [sys.executable, str(ORACLE), str(folder)]
            done = subprocess.run(script, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, done.stderr
            for name, (weights, asked) in given.items():
                answer = np.load(folder / f"{name}.out.npz")
                cases[name] = Case(CONFIGS[name], weights, asked, answer)
        return cases[name]

    return get


@pytest.fixture
def case(request: pytest.FixtureRequest, ask: Callable[[str], Case]) -> Case:
    return ask(request.param)


def write_case(folder: Path, name: str) -> Tuple[Arrays, Arrays]:
    config = CONFIGS[name]
    draw = np.random.default_rng(len(name))
    weights, asked = random_weights(config, draw), inputs(config, draw)
    text = {"config": dataclasses.asdict(config), "steps": steps(name), "lr": RATE, "new": NEW}
    (folder / f"{name}.json").write_text(json.dumps(text))
    named = {f"w:{key}": value for key, value in weights.items()}
    np.savez(folder / f"{name}.npz", **named, **asked)
    return weights, asked


def build(config: ModelConfig, weights: Arrays) -> Glm2:
    model = Glm2(config)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))
    return model


def difference(config: ModelConfig, weights: Arrays, case: Case) -> float:
    """How far the logits of tokens that are no padding are from PyTorch's at most."""
    model = build(config, weights)
    model.set_train(False)
    found = model(Tensor(case.asked["ids"])).asnumpy()
    return float(np.abs(found - case.answer["logits"])[case.asked["seen"] == 1].max())


@pytest.mark.parametrize(("case", "limit"), [(n, logit_limit(n)) for n in SMALL], indirect=["case"])
def test_logits(case: Case, limit: float) -> None:
    assert case.answer["logits"].std() > 0.3, "the logits say something"
    assert difference(case.config, case.weights, case) < limit


@pytest.mark.parametrize("case", ALL, indirect=True)
def test_loss_and_all_gradients_in_some_steps_of_training(case: Case) -> None:
    model = build(case.config, case.weights)
    weights = ParameterTuple(model.trainable_params())
    adam = AdamW(weights, Optimizer())
    ids, labels = Tensor(case.asked["ids"]), Tensor(case.asked["labels"])

    def mean_loss(ids: Tensor, labels: Tensor) -> Tensor:
        return next_token_loss(model(ids), labels) / learned_tokens(labels)

    differentiate = ms.jit(ops.value_and_grad(mean_loss, None, weights))
    for step in range(len(case.answer["losses"])):
        loss, gradients = differentiate(ids, labels)
        assert float(loss.asnumpy()) == pytest.approx(case.answer["losses"][step], abs=1e-5)
        if step == 0:
            for weight, gradient in zip(weights, gradients):
                expected = case.answer[f"g0:{weight.name}"]
                far = np.abs(gradient.asnumpy() - expected).max() / np.abs(expected).max()
                assert far < 1e-4, weight.name
        adam(gradients, Tensor(RATE, ms.float32), Tensor(step + 1.0, ms.float32))
    assert case.answer["losses"][-1] < case.answer["losses"][0]


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_steps_of_adamw_are_those_of_torch(case: Case) -> None:
    weights = [ms.Parameter(Tensor(v), name=name) for name, v in case.weights.items()]
    adam = AdamW(weights, Optimizer(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1))
    for step in range(len(case.answer["losses"])):
        gradients = tuple(Tensor(case.answer[f"g{step}:{w.name}"]) for w in weights)
        adam(gradients, Tensor(RATE, ms.float32), Tensor(step + 1.0, ms.float32))
        for weight in weights:
            expected = case.answer[f"w{step}:{weight.name}"]
            assert np.abs(weight.asnumpy() - expected).max() < 1e-6, weight.name


@pytest.mark.parametrize("case", ALL, indirect=True)
def test_greedy_tokens_of_a_batch_with_padding_on_the_left(case: Case) -> None:
    model = build(case.config, case.weights)
    generator = Generator(model, batch=2, width=PROMPT, capacity=PROMPT + NEW)
    prompts = [
        [int(token) for token, seen in zip(row, mask) if seen]
        for row, mask in zip(case.asked["prompts"], case.asked["prompts_seen"])
    ]
    found = np.array(list(generator.stream(prompts, Sampling(), NEW)))
    np.testing.assert_array_equal(found.T, case.answer["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["larger"], indirect=True)
def test_logits_of_a_larger_network(case: Case) -> None:
    assert difference(case.config, case.weights, case) < logit_limit("larger")


class TestWrongNetworksAreSeen:
    """The comparison has teeth: it fails for networks that are almost right."""

    CASE = pytest.mark.parametrize("case", ["two_groups"], indirect=True)

    @CASE
    @pytest.mark.parametrize(
        "change",
        [
            {"layernorm_epsilon": 1e-6},
            {"layernorm_epsilon": 1.5625e-7},  # that of GlmConfig by default
            {"post_layer_norm": False},
        ],
    )
    def test_by_its_configuration(self, case: Case, change: dict) -> None:
        wrong = dataclasses.replace(case.config, **change)
        assert difference(wrong, case.weights, case) > 2 * logit_limit("two_groups")

    @CASE
    @pytest.mark.parametrize("part", ["mlp.dense_h_to_4h.weight", "query_key_value.weight"])
    def test_by_a_projection_with_its_halves_swapped(self, case: Case, part: str) -> None:
        wrong = {
            name: np.concatenate(np.split(value, 2)[::-1]) if name.endswith(part) else value
            for name, value in case.weights.items()
        }
        assert difference(case.config, wrong, case) > 2 * logit_limit("two_groups")

    @CASE
    def test_by_halves_that_turn_in_place_of_pairs(self, case: Case) -> None:
        """Channels i and i + D/4 turn together as in other networks: this network with the
        channels of queries and keys in another order, which their products do not see."""
        wrong = {
            name: by_halves(value, case.config) if "query_key_value" in name else value
            for name, value in case.weights.items()
        }
        assert difference(case.config, wrong, case) > 2 * logit_limit("two_groups")


def by_halves(fused: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of queries and keys with channels 0, 1, 2, … of a head as 0, D/4, 1, D/4 + 1, …"""
    turned = config.query_size + config.kv_size
    heads = fused[:turned].reshape((-1, config.kv_channels, *fused.shape[1:]))
    quarter = config.kv_channels // 4
    order = np.arange(2 * quarter).reshape(2, quarter).T.reshape(-1)
    heads = np.concatenate((heads[:, order], heads[:, 2 * quarter :]), 1)
    return np.concatenate((heads.reshape((turned, *fused.shape[1:])), fused[turned:]))
