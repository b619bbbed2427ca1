"""``describe``: parameters and memory by arithmetic, and how ranks divide the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from glm2.__main__ import main
from glm2.adapters import is_adapter
from glm2.config import LoraConfig, ModelConfig
from glm2.describe import (
    Layout,
    activations,
    cache_memory,
    own_layout,
    parts,
    training_memory,
)
from glm2.division import rank_shapes
from glm2.errors import ConfigError
from glm2.settings import Settings, find_config, load_settings
from glm2.weights import weight_shapes

PADDING_TOO = "train_dataset.ignore_pad_token_for_loss=False"
SIX_BILLION = 6_243_584_000
HALF = 2


def settings(name: str, *overrides: str) -> Settings:
    return load_settings(find_config(name), overrides)


class TestParameters:
    def test_chatglm2_6b_has_its_number(self) -> None:
        found = {p.name.rpartition("transformer.")[2]: p for p in parts(ModelConfig())}
        assert sum(p.parameters for p in found.values()) == SIX_BILLION
        assert found["output_layer.weight"].parameters == 65024 * 4096
        fused = found["encoder.layers.N.self_attention.query_key_value.weight"]
        assert (fused.shape, fused.count) == ((4608, 4096), 28)

    def test_loras_are_counted_apart(self) -> None:
        lora = LoraConfig(lora_rank=8)
        found = parts(ModelConfig(pet_config=lora))
        adapters = sum(p.parameters for p in found if is_adapter(p.name))
        assert adapters == 28 * 8 * (4096 + 4608)
        assert sum(p.parameters for p in found) - adapters == SIX_BILLION


class TestMemory:
    def test_weights_gradients_and_state_are_exact(self) -> None:
        run = settings("run_glm2_6b_finetune")
        alone = training_memory(run, Layout(8, 1, optimizer_shard=False), 8)
        assert alone.weights == alone.gradients == SIX_BILLION * HALF
        assert alone.optimizer == SIX_BILLION * 8
        shared = training_memory(run, Layout(8, 1, optimizer_shard=True), 8)
        assert shared.optimizer == SIX_BILLION
        assert replace(shared, optimizer=alone.optimizer) == alone

    def test_frozen_weights_have_neither_gradients_nor_state(self) -> None:
        run = settings("run_glm2_6b_lora")
        adapters = 28 * 8 * (4096 + 4608)
        found = training_memory(run, Layout(8, 1, optimizer_shard=False), 8)
        assert found.weights == SIX_BILLION * HALF + adapters * 4
        assert (found.gradients, found.optimizer) == (adapters * 4, adapters * 8)

    def test_accumulated_gradients_are_float32_beside_those_of_a_batch(self) -> None:
        run = settings("run_glm2_6b_finetune", "runner_config.gradient_accumulation_steps=2")
        found = training_memory(run, Layout(8, 1, optimizer_shard=False), 8)
        assert found.gradients == SIX_BILLION * (HALF + 4)

    def test_recompute_keeps_less_and_longer_rows_more(self) -> None:
        run = settings("run_glm2_6b_finetune")
        whole = activations(run, 1, 2, recompute=False)
        assert activations(run, 1, 2, recompute=True) < whole / 5
        assert activations(run, 1, 4, recompute=False) == 2 * whole
        longer = settings(
            "run_glm2_6b_finetune",
            "train_dataset.max_target_length=1920",
            "model.model_config.seq_length=1985",
        )
        assert activations(longer, 1, 2, recompute=False) > 13 * whole, "attention is quadratic"

    def test_tokens_that_are_not_learned_have_no_logits(self) -> None:
        run = settings("run_glm2_6b_finetune")
        all_learned = settings("run_glm2_6b_finetune", PADDING_TOO)
        more = activations(all_learned, 1, 2, recompute=True)
        fewer = activations(run, 1, 2, recompute=True)
        assert more - fewer == 2 * 64 * 65024 * (2 * HALF + 2 * 4)

    def test_the_cache_holds_the_groups_of_every_layer(self) -> None:
        config = ModelConfig(compute_dtype="float16")
        assert cache_memory(config, 1, 512) == 2 * 28 * 512 * 2 * 128 * HALF

    def test_the_layout_is_the_configurations_own(self) -> None:
        assert own_layout(settings("run_glm2_6b_finetune_2k")) == Layout(1, 8, False)
        assert own_layout(settings("run_glm2_6b_finetune")) == Layout(8, 1, True)
        assert own_layout(settings("run_glm2_6b")) == Layout(8, 1, True)
        alone = settings("run_glm2_6b", "use_parallel=False")
        assert own_layout(alone) == Layout(1, 1, False)


class TestDivision:
    @given(
        st.integers(1, 3), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([1, 2, 4, 8]), st.booleans(), st.booleans(),
    )  # fmt: skip
    def test_ranks_hold_the_whole_together(
        self, layers: int, heads: int, groups: int, ranks: int, whole: bool, lora: bool
    ) -> None:
        assume(heads % groups == 0 and heads % ranks == 0)
        config = ModelConfig(
            num_layers=layers, hidden_size=12, ffn_hidden_size=16, kv_channels=4,
            num_attention_heads=heads, multi_query_group_num=groups, padded_vocab_size=24,
            pet_config=LoraConfig(lora_rank=2, target_modules=".*") if lora else None,
        )  # fmt: skip
        every = rank_shapes(config)
        assert {k: v for k, v in every.items() if not is_adapter(k)} == weight_shapes(config)
        shared = rank_shapes(config, ranks, vocab_emb_dp=whole)
        assert shared.keys() == every.keys()
        for name, shape in every.items():
            own, times = prod(shared[name]) * ranks, prod(shape)
            if shared[name] == shape:
                held_whole = ("norm", "embedding", "_lora_")
                assert ranks == 1 or any(word in name for word in held_whole), name
            elif "query_key_value" not in name:
                assert own == times, name
            else:  # the keys and values of a group may be on several ranks
                copies = max(ranks // groups, 1)
                rows = (heads + 2 * groups * copies) * 4
                assert own == rows * times // every[name][0], name

    @pytest.mark.parametrize(
        ("values", "ranks", "named"),
        [
            ({}, 3, "num_attention_heads 32 cannot be divided among 3 ranks"),
            ({"ffn_hidden_size": 13699}, 2, "ffn_hidden_size 13699"),
            ({"padded_vocab_size": 65023}, 2, "padded_vocab_size 65023"),
            (
                {"num_attention_heads": 36, "multi_query_group_num": 6, "ffn_hidden_size": 36,
                 "padded_vocab_size": 36},
                4,
                "6 key/value groups cannot be divided among 4 ranks",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_divided_is_named(self, values: dict, ranks: int, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            rank_shapes(ModelConfig(**values), ranks)


class TestCommand:
    def test_the_table_shows_the_sum(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["describe", "--config", "run_glm2_6b_finetune"]) == 0
        said = capsys.readouterr().out
        assert "28 layers × 203,960,832 = 6,243,584,000" in said
        assert "dp 8, mp 1, state divided *" in said
        assert "optimizer state (float32)                       5.81 GiB" in said

    @pytest.mark.parametrize("name", ["run_glm2_6b_lora_eval", "export_glm2_6b", "tiny_cpu"])
    def test_json_has_the_same_for_programs(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["describe", "--config", name, "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sum(p["parameters"] for p in found["parts"]) == found["parameters"]["total"]
        assert ("train" in found) == (name == "tiny_cpu")
        if name == "tiny_cpu":
            train = found["train"]
            kinds = ("weights", "gradients", "optimizer", "activations")
            assert train["total"] == sum(train[kind] for kind in kinds)
            own = [
                one for one in found["layouts"]
                if (one["data_parallel"], one["optimizer_shard"]) == (8, False)
            ]  # fmt: skip
            assert [one["total"] for one in own] == [train["total"]]

    def test_mindspore_is_not_needed(self) -> None:
        code = (
            "import sys; sys.modules['mindspore'] = None\n"
            "from glm2.__main__ import main\n"
            "sys.exit(main(['describe', '--config', 'run_glm2_6b_lora']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
