"""LoRA: what adapters add, what trains, how they are merged, saved and loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from glm2.adapters import DOWN, UP, adapter_shapes, is_adapter
from glm2.build import build_model
from glm2.checkpoint import load_weights, read_parameters, read_weights
from glm2.config import LoraConfig, ModelConfig
from glm2.dropout import set_seed
from glm2.errors import CheckpointError, ConfigError
from glm2.lora import add_adapters, load_adapted, merge
from glm2.model import Glm2, next_token_loss
from glm2.settings import find_config, load_settings
from glm2.weights import PROGRESS_NAMES, weight_shapes
from tests.mindspore.glm2.reference import forward, random_weights
from tests.mindspore.glm2.worker import TRAINING, Workers, metrics, steps

LORA = LoraConfig(lora_rank=3, lora_alpha=6.0, lora_dropout=0.0)
CONFIG = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=24, kv_channels=8, num_attention_heads=2,
    multi_query_group_num=1, padded_vocab_size=31, seq_length=8, pet_config=LORA,
)  # fmt: skip
EVERYWHERE = dataclasses.replace(
    CONFIG, pet_config=dataclasses.replace(LORA, target_modules=r".*\.layers\..*")
)
IDS = np.random.default_rng(5).integers(0, 31, (2, 8)).astype(np.int32)

Arrays = Dict[str, np.ndarray]


def adapted(config: ModelConfig = CONFIG, *, fresh: bool = False) -> Glm2:
    """A network with adapters; unless ``fresh``, they and its weights matter to the result."""
    model = Glm2(config)
    add_adapters(model)
    if not fresh:
        random_weights(model)
    return model


def values(model: Glm2) -> Arrays:
    return {p.name: p.asnumpy().copy() for p in model.get_parameters()}


def logits(model: Glm2, *, train: bool = False) -> np.ndarray:
    model.set_train(train)
    return model(Tensor(IDS)).asnumpy()


def merged(found: Arrays, scale: float = LORA.scale) -> Arrays:
    """The weights with the adapters added, in float64."""
    weights = {k: v.astype(np.float64) for k, v in found.items() if not is_adapter(k)}
    for name in found:
        if name.endswith(UP):
            layer = name[: -len(UP) - 1]
            weights[f"{layer}.weight"] += scale * found[name] @ found[f"{layer}.{DOWN}"]
    return weights


def save(file: Path, parameters: Arrays) -> Path:
    ms.save_checkpoint([{"name": k, "data": Tensor(v)} for k, v in parameters.items()], str(file))
    return file


class TestAdapters:
    @pytest.mark.parametrize("config", [CONFIG, EVERYWHERE])
    def test_they_alone_train_under_mindpets_names(self, config: ModelConfig) -> None:
        model = adapted(config)
        trained = {p.name: tuple(p.shape) for p in model.trainable_params()}
        assert trained == adapter_shapes(config)
        assert len(trained) == 2 * config.num_layers * (1 if config is CONFIG else 4)
        first = "transformer.encoder.layers.0.self_attention.query_key_value"
        assert {f"{first}.{DOWN}", f"{first}.{UP}"} <= set(trained)
        rest = {p.name for p in model.get_parameters() if not p.requires_grad}
        assert rest == set(weight_shapes(config))

    def test_fresh_ones_change_nothing(self) -> None:
        model = adapted(fresh=True)
        up = [p.asnumpy() for p in model.trainable_params() if p.name.endswith(UP)]
        assert not np.any(up)
        down = [p.asnumpy() for p in model.trainable_params() if p.name.endswith(DOWN)]
        # Uniform within 1 / sqrt(inputs), as MindPet begins.
        assert 0.2 < np.abs(down).max() <= 0.25
        expected = [forward(CONFIG, merged(values(model)), row) for row in IDS]
        np.testing.assert_allclose(logits(model), np.stack(expected), atol=1e-4)

    @pytest.mark.parametrize("config", [CONFIG, EVERYWHERE])
    def test_the_output_is_that_of_the_weights_plus_the_scaled_product(
        self, config: ModelConfig
    ) -> None:
        model = adapted(config)
        found = values(model)
        expected = np.stack([forward(config, merged(found), row) for row in IDS])
        without = np.stack([forward(config, merged(found, 0.0), row) for row in IDS])
        assert np.abs(expected - without).max() > 0.1, "the adapters matter"
        np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-4)

    def test_gradients_are_those_of_the_product(self) -> None:
        """With W' = W + s·B A: dL/dA = s·Bᵀ dL/dW' and dL/dB = s·dL/dW' Aᵀ."""
        found = values(adapted())
        gradients = self.gradients(adapted(), found)
        assert set(gradients) == set(adapter_shapes(CONFIG))
        plain = Glm2(dataclasses.replace(CONFIG, pet_config=None))
        whole = self.gradients(plain, {k: v.astype(np.float32) for k, v in merged(found).items()})
        for name, gradient in gradients.items():
            layer = name.rpartition(".")[0]
            down, up = found[f"{layer}.{DOWN}"], found[f"{layer}.{UP}"]
            outer = LORA.scale * whole[f"{layer}.weight"]
            expected = up.T @ outer if name.endswith(DOWN) else outer @ down.T
            far = np.abs(gradient - expected).max() / np.abs(expected).max()
            assert far < 1e-4, name

    @staticmethod
    def gradients(model: Glm2, found: Arrays) -> Arrays:
        for parameter in model.get_parameters():
            parameter.set_data(Tensor(found[parameter.name]))
        weights = ParameterTuple(model.trainable_params())

        def loss(ids: Tensor) -> Tensor:
            return next_token_loss(model(ids), ids)

        _, gradients = ms.jit(ops.value_and_grad(loss, None, weights))(Tensor(IDS))
        return {w.name: g.asnumpy() for w, g in zip(weights, gradients)}

    def test_the_dropout_acts_in_training_only(self) -> None:
        lora = dataclasses.replace(LORA, lora_dropout=0.5)
        model = adapted(dataclasses.replace(CONFIG, pet_config=lora))
        expected = np.stack([forward(CONFIG, merged(values(model)), row) for row in IDS])
        set_seed(1)
        first, again = logits(model, train=True), logits(model, train=True)
        np.testing.assert_array_equal(again, first)
        set_seed(2)
        second = logits(model, train=True)
        assert np.abs(first - second).max() > 1e-2
        assert np.abs(first - expected).max() > 1e-2
        np.testing.assert_allclose(logits(model), expected, atol=1e-4, rtol=1e-4)

    def test_recompute_drops_out_the_same_again(self) -> None:
        lora = dataclasses.replace(LORA, lora_dropout=0.5)
        config = dataclasses.replace(CONFIG, pet_config=lora, num_layers=1)
        found: List[Arrays] = []
        for recompute in (False, True):
            ms.set_seed(11)
            model = adapted(config)
            model.set_train()
            if recompute:
                model.transformer.encoder.layers[0].recompute()
            found.append(self.gradients(model, values(model)))
        for name, gradient in found[0].items():
            np.testing.assert_allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6)

    def test_a_pattern_that_names_no_layer_is_refused(self) -> None:
        lora = dataclasses.replace(LORA, target_modules="q_proj")
        with pytest.raises(ConfigError, match="'q_proj' names no linear layer") as caught:
            add_adapters(Glm2(dataclasses.replace(CONFIG, pet_config=lora)))
        assert "self_attention.query_key_value" in caught.value.hint


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_merged_weights_answer_as_the_adapters_did(kind: str) -> None:
    config = dataclasses.replace(EVERYWHERE, param_init_type=kind)
    model = adapted(config)
    expected = merged(values(model))
    merge(model)
    found = values(model)
    assert set(found) == set(weight_shapes(config))
    for name, value in found.items():
        assert value.dtype == kind
        limit = 2e-6 if kind == "float32" else 2e-3
        np.testing.assert_allclose(value, expected[name], rtol=limit, atol=limit)
    if kind == "float32":
        rows = np.stack([forward(config, expected, row) for row in IDS])
        np.testing.assert_allclose(logits(model), rows, atol=1e-4, rtol=1e-4)


class TestLoading:
    @pytest.fixture
    def found(self) -> Arrays:
        return values(adapted())

    def split(self, found: Arrays) -> List[Arrays]:
        return [{k: v for k, v in found.items() if is_adapter(k) is kind} for kind in (False, True)]

    def check(self, model: Glm2, expected: Arrays) -> None:
        for name, value in values(model).items():
            np.testing.assert_array_equal(value, expected[name], name)

    def test_weights_and_adapters_in_one_file(self, found: Arrays, tmp_path: Path) -> None:
        state = {"adam_m.x.mindpet_delta_lora_a": np.zeros(2, np.float32)}
        file = save(tmp_path / "all.ckpt", {**found, **state})
        model = adapted(fresh=True)
        assert load_adapted(model, file, "") == str(file)
        self.check(model, found)

    def test_adapters_alone_go_on_top_of_the_base(self, found: Arrays, tmp_path: Path) -> None:
        weights, adapters = self.split(found)
        file = save(tmp_path / "adapters.ckpt", adapters)
        base = save(tmp_path / "base.ckpt", weights)
        model = adapted(fresh=True)
        assert load_adapted(model, file, str(base)) == f"{base} and the adapters of {file}"
        self.check(model, found)

    def test_mindpets_large_letters_are_the_same_adapters(
        self, found: Arrays, tmp_path: Path
    ) -> None:
        large = {k[:-1] + k[-1].upper() if is_adapter(k) else k: v for k, v in found.items()}
        assert len(large.keys() - found.keys()) == 4
        model = adapted(fresh=True)
        load_adapted(model, save(tmp_path / "all.ckpt", large), "")
        self.check(model, found)

    def test_adapters_of_the_base_are_replaced(self, found: Arrays, tmp_path: Path) -> None:
        _, adapters = self.split(found)
        file = save(tmp_path / "adapters.ckpt", adapters)
        other = {k: v + 1 if is_adapter(k) else v for k, v in found.items()}
        base = save(tmp_path / "base.ckpt", other)
        model = adapted(fresh=True)
        load_adapted(model, file, str(base))
        self.check(model, found)

    def test_weights_alone_leave_fresh_adapters(self, found: Arrays, tmp_path: Path) -> None:
        weights, _ = self.split(found)
        model = adapted(fresh=True)
        fresh = {k: v for k, v in values(model).items() if is_adapter(k)}
        said = load_adapted(model, save(tmp_path / "base.ckpt", weights), "")
        assert said.endswith("(no adapters in it)")
        self.check(model, {**weights, **fresh})

    def test_adapters_without_a_base_are_refused(self, found: Arrays, tmp_path: Path) -> None:
        _, adapters = self.split(found)
        with pytest.raises(CheckpointError, match="adapters alone") as caught:
            load_adapted(adapted(fresh=True), save(tmp_path / "a.ckpt", adapters), "")
        assert "checkpoint_name_or_path" in caught.value.hint

    def test_adapters_without_pet_config_are_refused(self, found: Arrays, tmp_path: Path) -> None:
        plain = Glm2(dataclasses.replace(CONFIG, pet_config=None))
        with pytest.raises(CheckpointError, match="has no pet_config"):
            load_weights(plain, save(tmp_path / "all.ckpt", found))

    def test_adapters_of_another_rank_are_named(self, found: Arrays, tmp_path: Path) -> None:
        wrong = {k: v[:2] if k.endswith(DOWN) else v for k, v in found.items()}
        with pytest.raises(CheckpointError, match=rf"{DOWN} is \[2, 16\], the model needs \[3"):
            load_adapted(adapted(fresh=True), save(tmp_path / "a.ckpt", wrong), "")

    def test_a_missing_weight_is_named(self, found: Arrays, tmp_path: Path) -> None:
        del found["transformer.output_layer.weight"]
        with pytest.raises(CheckpointError, match=r"missing transformer\.output_layer\.weight"):
            load_adapted(adapted(fresh=True), save(tmp_path / "a.ckpt", found), "")


class TestBuild:
    PET = "model.model_config.pet_config.pet_type=lora"

    def test_a_resume_from_adapters_alone_needs_their_weights(self) -> None:
        adapters_alone = "parallel.strategy_ckpt_config.only_trainable_params=True"
        overrides = [self.PET, adapters_alone, "resume_training=True"]
        settings = load_settings(find_config("tiny_cpu"), overrides)
        with pytest.raises(CheckpointError, match="from adapters alone") as caught:
            build_model(settings, None)
        assert "checkpoint_name_or_path" in caught.value.hint

    def test_adapters_of_a_random_model_are_warned_of(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = build_model(load_settings(find_config("tiny_cpu"), [self.PET]), None)
        said = capsys.readouterr()
        assert "trained on a random model" in said.err
        adapters = 2 * 8 * (128 + 256)
        assert f"LoRA: {adapters:,} parameters are trained, 625,792 are frozen" in said.out
        assert sum(p.size for p in model.trainable_params()) == adapters


class TestCommandLine:
    """Training on a base that was trained before, and answers with what it leaves."""

    BASE = "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt"
    PET = ("--set", "model.model_config.pet_config.pet_type=lora")
    FILE = "output/checkpoint/rank_0/glm2-tiny_rank_0-1_6.ckpt"
    QUESTION = r"[Round 1]\n\n问：类型#裙\n\n答："

    @pytest.fixture(scope="class")
    @classmethod
    def trained(
        cls, workers: Workers, alone: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        """Folder of a finished LoRA training whose checkpoints hold the adapters alone."""
        folder = tmp_path_factory.mktemp("lora")
        worker = workers.start(
            folder, *TRAINING, *cls.PET, "--load_checkpoint", str(alone / cls.BASE),
            "--set", "runner_config.epochs=1", "--set", "callbacks.1.save_checkpoint_steps=0",
            "--set", "parallel.strategy_ckpt_config.only_trainable_params=True",
            "--set", "recompute_config.recompute=True",
        )  # fmt: skip
        assert worker.wait(timeout=120) == 0, (folder / "rank_0.log").read_text()
        return folder

    def base(self, alone: Path) -> Arrays:
        weights = read_weights(alone / self.BASE)
        return {name: value.asnumpy() for name, value in weights.items()}

    def test_only_adapters_are_saved_with_their_state(self, trained: Path) -> None:
        config = load_settings(find_config("tiny_cpu"), [self.PET[1]]).model
        adapters = adapter_shapes(config)
        saved = read_parameters(trained / self.FILE)
        state = {f"adam_{moment}.{name}" for moment in "mv" for name in adapters}
        assert set(saved) == {*adapters, *state, *PROGRESS_NAMES}
        assert all(np.any(saved[name].asnumpy()) for name in adapters), "they have learned"
        losses = [line["loss"] for line in steps(trained)]
        assert losses[-1] < losses[0]
        strategy = ms.build_searched_strategy(
            str(trained / "output/strategy/ckpt_strategy_rank_0.ckpt")
        )
        assert set(strategy) == {*adapters, *state}

    def test_predict_takes_base_and_adapters_or_merged_weights(
        self, workers: Workers, alone: Path, trained: Path, tmp_path: Path
    ) -> None:
        answers = []
        found = {k: v.asnumpy() for k, v in read_weights(trained / self.FILE).items()}
        whole = merged({**self.base(alone), **found}, 32 / 8)
        weights = {k: v.astype(np.float32) for k, v in whole.items()}
        file = save(tmp_path / "merged.ckpt", weights)
        base = f"model.model_config.checkpoint_name_or_path={alone / self.BASE}"
        for name, words in (
            ("both", ("--load_checkpoint", str(trained / self.FILE), *self.PET, "--set", base)),
            ("merged", ("--load_checkpoint", str(file))),
        ):
            folder = tmp_path / name
            folder.mkdir()
            worker = workers.start(
                folder, "--config", "tiny_cpu", "--run_mode", "predict", "--output_dir", "output",
                "--predict_data", self.QUESTION, *words,
            )  # fmt: skip
            assert worker.wait(timeout=120) == 0, (folder / "rank_0.log").read_text()
            (result,) = [line["result"] for line in metrics(folder) if "result" in line]
            answers.append(result["predictions"])
        assert answers[0] == answers[1]

    def test_the_controllers_merge_makes_the_same_weights(
        self, alone: Path, trained: Path, tmp_path: Path
    ) -> None:
        settings = load_settings(
            find_config("tiny_cpu"),
            [
                self.PET[1],
                "run_mode=predict",
                f"model.model_config.checkpoint_name_or_path={alone / self.BASE}",
            ],
        )
        here = values(build_model(settings, trained / self.FILE))
        command = [
            sys.executable, "-m", "orchestrator.cli.main", "merge-ckpt", "--no-optimizer",
            "--src_ckpt_dir", str(trained / self.FILE), "--lora_base", str(alone / self.BASE),
            "--lora_alpha", "32", "--dst_ckpt_dir", str(tmp_path / "merged.ckpt"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        there = read_weights(tmp_path / "merged.ckpt")
        assert here.keys() == there.keys()
        for name, value in here.items():
            np.testing.assert_allclose(there[name].asnumpy(), value, atol=1e-7, err_msg=name)
