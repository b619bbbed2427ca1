"""AdamW against its definition, the course of the learning rate, and the loss scale."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor

from glm2.config import ModelConfig
from glm2.data import IGNORED_LABEL
from glm2.errors import ConfigError, UsageError
from glm2.model import Glm2
from glm2.optimizer import AdamW, Scale, learning_rate
from glm2.optimizer_shard import buckets
from glm2.parallel import Layout, layout_of
from glm2.settings import (
    Dataset,
    LossScale,
    Optimizer,
    Parallel,
    Schedule,
    Settings,
    find_config,
    load_settings,
)
from glm2.train_step import AccumulatedStep, Step, StepNumbers, StepResult, TrainStep, make_step

SETTINGS = Optimizer(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3)


def test_updates_are_those_of_the_definition() -> None:
    draw = np.random.default_rng(3)
    start = {"matrix": draw.normal(size=(3, 2)), "bias": draw.normal(size=4)}
    weights = [
        ms.Parameter(Tensor(value.astype(np.float32)), name=name) for name, value in start.items()
    ]
    optimizer = AdamW(weights, SETTINGS)
    assert [m.name for m in (*optimizer.m, *optimizer.v)] == [
        "adam_m.matrix", "adam_m.bias", "adam_v.matrix", "adam_v.bias"
    ]  # fmt: skip
    m = {name: np.zeros_like(value) for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in start.items()}
    for update in range(1, 5):
        rate = 0.1 / update
        gradients = {name: draw.normal(size=value.shape) for name, value in start.items()}
        optimizer(
            tuple(Tensor(g.astype(np.float32)) for g in gradients.values()),
            Tensor(rate, ms.float32),
            Tensor(float(update), ms.float32),
        )
        for name, g in gradients.items():
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g**2
            step = (m[name] / (1 - 0.8**update)) / (np.sqrt(v[name] / (1 - 0.9**update)) + 1e-3)
            decay = 0.3 if name == "matrix" else 0.0  # biases and norms are not decayed
            start[name] = start[name] - rate * (step + decay * start[name])
    for parameter in weights:
        np.testing.assert_allclose(parameter.asnumpy(), start[parameter.name], rtol=1e-5)


class TestLearningRate:
    SCHEDULE = Schedule(learning_rate=1.0, end=0.2, warmup_steps=4)

    def test_it_rises_in_a_line_and_falls_in_a_line(self) -> None:
        rates = [learning_rate(self.SCHEDULE, update, 12) for update in range(14)]
        assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert rates[8] == pytest.approx(0.6)
        assert rates[12:] == [0.2, 0.2], "it stays at the end"

    @given(st.integers(0, 20), st.integers(1, 50), st.floats(0.5, 3.0))
    def test_it_never_rises_behind_the_warm_up(self, warm: int, total: int, power: float) -> None:
        schedule = Schedule(learning_rate=1.0, end=0.1, warmup_steps=warm, power=power)
        rates = [learning_rate(schedule, update, total) for update in range(warm, warm + 60)]
        assert rates == sorted(rates, reverse=True)
        assert all(0.1 <= rate <= 1.0 for rate in rates)

    def test_the_files_own_length_comes_before_that_of_the_run(self) -> None:
        schedule = Schedule(learning_rate=1.0, end=0.0, total_steps=100)
        assert learning_rate(schedule, 50, 60) == pytest.approx(0.5)


class TestScale:
    SETTINGS = LossScale(initial=8.0, factor=2.0, window=3)

    def test_it_falls_at_an_overflow_and_rises_after_a_window_of_good_steps(self) -> None:
        scale = Scale(8.0)
        values = []
        for overflow in (False, False, True, False, False, False, False):
            scale = scale.after(overflow, self.SETTINGS)
            values.append(scale.value)
        assert values == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0]

    def test_it_never_falls_below_1(self) -> None:
        assert Scale(1.0).after(True, self.SETTINGS).value == 1.0

    def test_without_float16_it_does_not_move(self) -> None:
        scale = Scale(1.0, dynamic=False)
        assert scale.after(True, self.SETTINGS) == scale


class TestStep:
    """One step of training as it is compiled, on a network of one layer."""

    IDS = np.array([[3, 4, 5, 6], [7, 8, 9, 0]], np.int32)
    LABELS = np.array([[-100, -100, 5, 6], [-100, 8, 9, -100]], np.int32)

    @pytest.fixture(scope="class")
    @classmethod
    def settings(cls) -> Settings:
        return load_settings(find_config("tiny_cpu"))

    def model(self) -> Glm2:
        ms.set_seed(1)
        config = ModelConfig(
            num_layers=1, hidden_size=16, ffn_hidden_size=24, kv_channels=8,
            num_attention_heads=2, multi_query_group_num=1, padded_vocab_size=16, seq_length=4,
        )  # fmt: skip
        return Glm2(config)

    def step(self, settings: Settings) -> TrainStep:
        return TrainStep(self.model(), settings, Layout())

    def run(self, step: Step, scale: float = 1.0) -> StepResult:
        return step.run(self.IDS, self.LABELS, StepNumbers(0.01, 1, scale, False))

    def test_the_loss_is_a_mean_and_the_scale_does_not_show(self, settings: Settings) -> None:
        plain, scaled = (self.step(settings) for _ in range(2))
        first, second = self.run(plain), self.run(scaled, 64.0)
        # Fresh weights know nothing: each of the 16 tokens is about as likely.
        assert first.loss == pytest.approx(np.log(16), abs=0.2)
        assert second.loss == pytest.approx(first.loss, rel=1e-6)
        assert second.norm == pytest.approx(first.norm, rel=1e-5)
        for ours, theirs in zip(plain.weights, scaled.weights):
            # The gradient of a key's bias is 0 but for rounding, which AdamW makes steps of.
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-4)
        assert self.run(plain).loss < first.loss

    def test_a_step_that_overflows_changes_nothing(self, settings: Settings) -> None:
        step = self.step(settings)
        before = [w.asnumpy().copy() for w in step.weights]
        assert not self.run(step, float("inf")).finite
        for ours, theirs in zip(before, step.weights):
            np.testing.assert_array_equal(ours, theirs.asnumpy())
        assert not any(
            moment.asnumpy().any()
            for moment in (*step.update.optimizer.m, *step.update.optimizer.v)
        )

    def test_a_batch_that_teaches_nothing_has_no_loss(self, settings: Settings) -> None:
        step = self.step(settings)
        self.LABELS = np.full((2, 4), IGNORED_LABEL, np.int32)
        assert self.run(step) == StepResult(0.0, 0.0, True, 0)

    def test_batches_of_one_step_give_what_their_rows_give_in_one_batch(
        self, settings: Settings
    ) -> None:
        whole, parts = (
            self.step(settings),
            AccumulatedStep(self.model(), dataclasses.replace(settings, accumulation=2), Layout()),
        )
        for number in range(1, 4):
            numbers = StepNumbers(0.01, number, 4.0, number == 2)
            one, two = (step.run(self.IDS, self.LABELS, numbers) for step in (whole, parts))
            assert two[:2] == pytest.approx(one[:2], rel=1e-5)
            assert two[2:] == one[2:] == (True, int(number == 2))
        for ours, theirs in zip(whole.weights, parts.weights):
            # The gradient of a key's bias is 0 but for rounding, which AdamW makes steps of.
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-4)
        overflow = StepNumbers(0.01, 4, float("inf"), False)
        before = [w.asnumpy().copy() for w in parts.weights]
        assert not parts.run(self.IDS, self.LABELS, overflow).finite
        for ours, theirs in zip(before, parts.weights):
            np.testing.assert_array_equal(ours, theirs.asnumpy())
        assert parts.run(self.IDS, self.LABELS, numbers).finite, "nothing of it is left behind"

    def test_recomputed_layers_give_the_same_step(self, settings: Settings) -> None:
        kept, again = self.step(settings), self.step(settings)
        for layer in again.scaled_loss.model.transformer.encoder.layers:
            layer.recompute()
        for number in range(1, 4):
            numbers = StepNumbers(0.01, number, 1.0, False)
            one, two = (step.run(self.IDS, self.LABELS, numbers) for step in (kept, again))
            assert two == one

    @pytest.mark.parametrize("batches", [1, 2])
    def test_what_is_not_learned_can_be_left_out(self, settings: Settings, batches: int) -> None:
        def step(dataset: Dataset) -> Step:
            chosen = dataclasses.replace(settings, train=dataset, accumulation=batches)
            return make_step(self.model(), chosen, Layout())

        assert settings.train is not None
        everything = step(dataclasses.replace(settings.train, learn_padding=True))
        learned = step(dataclasses.replace(settings.train, max_target_length=1))
        assert (everything.most, learned.most) == (97, 2)
        for number in range(1, 4):
            numbers = StepNumbers(0.01, number, 4.0, False)
            one, two = (part.run(self.IDS, self.LABELS, numbers) for part in (everything, learned))
            assert two[:2] == pytest.approx(one[:2], rel=1e-5)
        for ours, theirs in zip(everything.weights, learned.weights):
            # The gradient of a key's bias is 0 but for rounding, which AdamW makes steps of.
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-4)


class TestLayout:
    def test_ranks_are_taken_from_the_environment(self) -> None:
        environ = {"RANK_ID": "3", "RANK_SIZE": "4"}
        assert layout_of(Parallel(), None, environ) == Layout(3, 4, 1)
        assert layout_of(Parallel(), None, {}) == Layout(0, 1, 1)

    @pytest.mark.parametrize(
        ("parallel", "use", "environ", "error"),
        [
            (Parallel(), None, {"RANK_ID": "4", "RANK_SIZE": "4"}, UsageError),
            (Parallel(), None, {"RANK_ID": "x", "RANK_SIZE": "4"}, UsageError),
            (Parallel(), False, {"RANK_ID": "0", "RANK_SIZE": "4"}, UsageError),
            (Parallel(data_parallel=8), None, {"RANK_ID": "0", "RANK_SIZE": "4"}, ConfigError),
            (Parallel(data_parallel=8), True, {}, ConfigError),
        ],
    )
    def test_what_contradicts_itself_is_refused(
        self, parallel: Parallel, use: bool, environ: dict, error: type
    ) -> None:
        with pytest.raises(error):
            layout_of(parallel, use, environ)

    @given(st.lists(st.integers(1, 20)), st.integers(1, 30))
    def test_buckets_hold_every_gradient_once_and_no_more_than_their_limit(
        self, sizes: list, limit: int
    ) -> None:
        found = buckets(sizes, limit)
        assert [i for first, last in found for i in range(first, last)] == list(range(len(sizes)))
        for first, last in found:
            assert last - first == 1 or sum(sizes[first:last]) <= limit
