"""The network against a second one in float64, its loss, and generation against the network."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Dict, List, Optional, Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from glm2.config import IGNORED_LABEL, LoraConfig, ModelConfig
from glm2.describe import parts
from glm2.division import rank_shapes
from glm2.errors import UsageError
from glm2.generate import Generator
from glm2.lora import add_adapters
from glm2.model import Glm2, learned_tokens, next_token_loss
from glm2.sampling import Sampling, choose, penalise
from tests.mindspore.glm2.reference import Weights, forward, random_weights

HEADS = 4
LENGTH = 12
VOCABULARY = 61

Network = Tuple[ModelConfig, Glm2, Weights]
_made: Dict[int, Network] = {}


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Network:
    """A network with random weights, by its key/value groups; each is compiled once."""
    groups: int = getattr(request, "param", 2)
    if groups not in _made:
        config = ModelConfig(
            num_layers=3,
            hidden_size=24,
            ffn_hidden_size=40,
            kv_channels=8,
            num_attention_heads=HEADS,
            multi_query_group_num=groups,
            padded_vocab_size=VOCABULARY,
            seq_length=LENGTH,
        )
        model = Glm2(config)
        model.set_train(False)
        _made[groups] = config, model, random_weights(model)
    return _made[groups]


def logits(model: Glm2, rows: np.ndarray) -> np.ndarray:
    return model(Tensor(rows.astype(np.int32))).asnumpy()


def some_rows(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (2, LENGTH))


class TestForward:
    @pytest.mark.parametrize("network", [1, 2, HEADS], indirect=True)
    def test_logits_are_those_of_the_reference(self, network: Network) -> None:
        config, model, weights = network
        rows = some_rows()
        expected = np.stack([forward(config, weights, row) for row in rows])
        assert expected.std() > 0.5, "the logits say something"
        np.testing.assert_allclose(logits(model, rows), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("network", [1, 2, HEADS], indirect=True)
    def test_no_token_sees_a_later_one(self, network: Network) -> None:
        _, model, _ = network
        rows = some_rows()
        before = logits(model, rows)
        place = 7
        rows[:, place] = (rows[:, place] + 1) % VOCABULARY
        after = logits(model, rows)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (np.abs(after - before)[:, place:].max(-1) > 1e-3).all()

    def test_parameters_have_the_names_of_the_guides_checkpoints(self, network: Network) -> None:
        _, _, weights = network
        layer = [
            "input_layernorm.weight",
            "self_attention.query_key_value.weight",
            "self_attention.query_key_value.bias",
            "self_attention.dense.weight",
            "post_attention_layernorm.weight",
            "mlp.dense_h_to_4h.weight",
            "mlp.dense_4h_to_h.weight",
        ]
        assert set(weights) == {
            "transformer.embedding.embedding_table",
            "transformer.encoder.final_layernorm.weight",
            "transformer.output_layer.weight",
            *(f"transformer.encoder.layers.{n}.{name}" for n in range(3) for name in layer),
        }


@pytest.mark.parametrize("pet", [None, LoraConfig(lora_rank=3, target_modules=".*dense.*")])
@pytest.mark.parametrize("values", [{}, {"add_qkv_bias": False, "post_layer_norm": False}])
def test_parameters_are_those_that_are_counted_without_making_them(
    network: Network, pet: Optional[LoraConfig], values: dict
) -> None:
    config = dataclasses.replace(network[0], pet_config=pet, **values)
    model = Glm2(config)
    add_adapters(model)
    made = {p.name: tuple(p.shape) for p in model.get_parameters()}
    assert made == rank_shapes(config)
    assert sum(part.parameters for part in parts(config)) == sum(map(prod, made.values()))


def test_the_loss_is_the_cross_entropy_of_the_learned_tokens() -> None:
    draw = np.random.default_rng(2)
    scores = draw.normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.full((2, 5), IGNORED_LABEL, np.int32)
    labels[0, 2:4], labels[1, 4] = (3, 6), 0
    odds = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    # The token at place t is predicted at t - 1.
    expected = -np.log([odds[0, 1, 3], odds[0, 2, 6], odds[1, 3, 0]]).sum()
    loss = next_token_loss(Tensor(scores), Tensor(labels))
    assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)
    assert float(learned_tokens(Tensor(labels)).asnumpy()) == 3


class TestGeneration:
    PROMPTS: Tuple[List[int], ...] = ([5, 17, 3, 40], [9, 2, 33], [60])

    def greedy(self, network: Network, prompt: List[int], count: int) -> List[int]:
        """The best next token of a whole forward pass, again and again."""
        _, model, _ = network
        tokens = list(prompt)
        for _ in range(count):
            # What stands on the right is seen by no earlier token.
            row = np.zeros((2, LENGTH), np.int64)
            row[:, : len(tokens)] = tokens
            tokens.append(int(logits(model, row)[0, len(tokens) - 1].argmax()))
        return tokens[len(prompt) :]

    @pytest.mark.parametrize("use_past", [True, False])
    def test_greedy_tokens_are_the_best_of_whole_forward_passes(
        self, network: Network, use_past: bool
    ) -> None:
        _, model, _ = network
        generator = Generator(model, batch=3, width=4, capacity=LENGTH, use_past=use_past)
        found = list(zip(*generator.stream(self.PROMPTS, Sampling())))
        expected = [self.greedy(network, prompt, LENGTH - 4) for prompt in self.PROMPTS]
        assert [list(row) for row in found] == expected
        # A second, smaller batch finds nothing of the first in the cache.
        again = list(zip(*generator.stream(self.PROMPTS[1:2], Sampling(), 3)))
        assert [list(row) for row in again] == [expected[1][:3]]

    def test_an_answer_ends_before_the_token_that_ends_it(self, network: Network) -> None:
        config, model, _ = network
        generator = Generator(model, batch=1, width=4, capacity=LENGTH)
        whole = self.greedy(network, self.PROMPTS[0], LENGTH - 4)
        end = whole[3]
        generator.config = ModelConfig(**{**vars(config), "eos_token_id": end})
        assert generator.generate(self.PROMPTS[:1]) == [whole[: whole.index(end)]]

    def test_what_does_not_fit_is_refused(self, network: Network) -> None:
        _, model, _ = network
        with pytest.raises(UsageError, match="prompts of 4 tokens and answers do not fit into 4"):
            Generator(model, batch=1, width=4, capacity=4)
        generator = Generator(model, batch=1, width=3, capacity=LENGTH)
        with pytest.raises(UsageError, match="a prompt has 4 tokens; there is room for 3"):
            generator.generate(self.PROMPTS[:1])


class TestChoice:
    LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))

    def drawn(self, **values: float) -> set:
        draw = np.random.default_rng(0)
        sampling = Sampling(do_sample=True, **values)
        return {int(choose(self.LOGITS, sampling, draw)[0]) for _ in range(300)}

    def test_only_the_best_tokens_are_drawn(self) -> None:
        assert self.drawn() == {0, 1, 2, 3}
        assert self.drawn(top_k=2) == {0, 1}
        assert self.drawn(top_p=0.79) == {0, 1}
        assert self.drawn(top_p=0.01) == {0}
        assert self.drawn(temperature=0.01) == {0}

    def test_used_tokens_become_less_likely(self) -> None:
        found = penalise(np.array([2.0, -2.0, 1.0, -1.0]), np.array([0, 1, 1]), 2.0)
        assert found.tolist() == [1.0, -4.0, 1.0, -1.0]

    @pytest.mark.parametrize(
        "values",
        [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"repetition_penalty": 0.0}],
    )
    def test_what_makes_no_sense_is_refused(self, values: dict) -> None:
        with pytest.raises(UsageError):
            Sampling(**values)


def test_float16_stays_near_float32(network: Network) -> None:
    config = dataclasses.replace(network[0], num_layers=1)
    whole = Glm2(config)
    weights = random_weights(whole)
    half = Glm2(dataclasses.replace(config, compute_dtype="float16", param_init_type="float16"))
    random_weights(half)
    rows = Tensor(some_rows().astype(np.int32))
    found, loss, gradients = trained(half, rows)
    assert found.dtype == ms.float16
    expected = np.stack([forward(config, weights, row) for row in rows.asnumpy()])
    np.testing.assert_allclose(found.asnumpy(), expected, atol=0.05)
    _, exact, exact_gradients = trained(whole, rows)
    assert loss == pytest.approx(exact, rel=0.01)
    for gradient, exact_one in zip(gradients, exact_gradients):
        assert gradient.dtype == np.float16
        far = np.linalg.norm(gradient.astype(np.float32) - exact_one) / np.linalg.norm(exact_one)
        assert far < 0.01


def trained(model: Glm2, rows: Tensor) -> Tuple[Tensor, float, List[np.ndarray]]:
    """Logits, loss and gradients of all weights."""

    def loss(rows: Tensor) -> Tuple[Tensor, Tensor]:
        found = model(rows)
        return next_token_loss(found, rows), found

    model.set_train(False)
    differentiate = ops.value_and_grad(
        loss, None, ms.ParameterTuple(model.trainable_params()), True
    )
    (value, found), gradients = ms.jit(differentiate)(rows)
    return found, float(value.asnumpy()), [gradient.asnumpy() for gradient in gradients]
