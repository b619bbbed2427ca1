"""The guide's YAML -> Settings: what is taken, what is refused, and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.__main__ import main
from glm2.config import LoraConfig, ModelConfig
from glm2.errors import ConfigError, Glm2Error, UsageError
from glm2.settings import (
    CONFIGS,
    Settings,
    check_row_length,
    find_config,
    load_settings,
)
from glm2.yaml_source import parse_value

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
DATASET = """\
train_dataset: &train_dataset
  data_loader:
    dataset_dir: train.json
  tokenizer:
    vocab_file: tokenizer.model
  max_source_length: 10
  max_target_length: 5
  batch_size: 2
train_dataset_task:
  dataset_config: *train_dataset
"""


def load(folder: Path, text: str, overrides: Sequence[str] = ()) -> Settings:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, overrides)


def refusal(folder: Path, text: str, overrides: Sequence[str] = ()) -> Glm2Error:
    with pytest.raises(Glm2Error) as caught:
        load(folder, text, overrides)
    return caught.value


class TestKeys:
    def test_an_unknown_key_is_named_with_its_line_and_what_was_meant(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "seed: 0\nmodel:\n  model_config:\n    num_layer: 2\n")
        assert error.message == "run.yaml:4: unknown key model.model_config.num_layer"
        assert error.hint == "did you mean num_layers?"

    def test_without_a_near_match_the_known_keys_are_listed(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "lr_schedule:\n  zzz: 2\n")
        assert error.message == "run.yaml:2: unknown key lr_schedule.zzz"
        assert error.hint.startswith("known here: ")
        assert "warmup_steps" in error.hint

    def test_a_value_of_the_wrong_type_is_named_with_its_line(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "runner_config:\n  epochs: many\n")
        assert error.message == (
            "run.yaml:2: runner_config.epochs must be a whole number, not 'many'"
        )

    @pytest.mark.parametrize("value", ["True", "1.5", "'1'"])
    def test_only_a_whole_number_is_a_whole_number(self, tmp_path: Path, value: str) -> None:
        assert "seed must be a whole number" in refusal(tmp_path, f"seed: {value}\n").message

    def test_a_required_key_that_is_missing_is_named(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "train_dataset:\n  data_loader: {dataset_dir: a.json}\n")
        assert error.message == "run.yaml:1: train_dataset.tokenizer.vocab_file is missing"

    def test_a_key_that_is_there_twice_is_refused(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "optimizer:\n  beta1: 0.9\n  beta1: 0.8\n")
        assert error.message == "run.yaml:3: the key beta1 is there twice"

    def test_a_section_that_is_a_value_is_refused(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "optimizer: AdamW\n")
        assert error.message == "run.yaml:1: optimizer must be a mapping of keys to values"

    @pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n"])
    def test_what_is_no_mapping_is_refused(self, tmp_path: Path, text: str) -> None:
        assert refusal(tmp_path, text).exit_status == 3

    @pytest.mark.parametrize("text", ["a: &a {b: *a}\n", "? [1, 2]\n: 3\n"])
    def test_yaml_that_no_configuration_needs_is_refused(self, tmp_path: Path, text: str) -> None:
        assert refusal(tmp_path, text).message.startswith("run.yaml:")

    def test_a_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "run.yaml"
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            load_settings(file)

    def test_keys_without_effect_are_named_and_no_error(self, tmp_path: Path) -> None:
        settings = load(tmp_path, "layer_decay: 0.65\ncontext:\n  device_target: CPU\n  fuse: 1\n")
        assert set(settings.unused) == {"layer_decay", "context.fuse"}

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("optimizer: {type: Lamb}", "optimizer.type is 'Lamb'"),
            ("runner_config: {epochs: 0}", "runner_config.epochs is 0"),
            ("runner_config: {batch_size: 0}", "runner_config.batch_size is 0; at least 1"),
            ("seed: -1", "seed is -1; at least 0"),
            (
                "callbacks: [{type: CheckpointMointor, save_checkpoint_steps: -1}]",
                "is -1; at least 0",
            ),
            ("lr_schedule: {warmup_steps: -5}", "lr_schedule.warmup_steps is -5; at least 0"),
            ("lr_schedule: {learning_rate: .nan}", "must be a finite number, not nan"),
            ("optimizer: {eps: 0}", "optimizer.eps is 0.0; above 0"),
            ("optimizer: {beta2: 1}", "optimizer.beta2 is 1.0; below 1"),
            ("runner_wrapper: {scale_sense: {scale_factor: 1}}", "scale_factor is 1.0; above 1"),
            ("parallel_config: {model_parallel: 0}", "model_parallel is 0; at least 1"),
            ("model: {model_config: {temperature: 0}}", "temperature is 0.0; above 0"),
            ("model: {model_config: {top_p: 1.5}}", "top_p is 1.5; at most 1"),
            ("parallel_config: {pipeline_stage: 2}", "parallel_config.pipeline_stage is 2"),
            ("callbacks: [{type: Unheard}]", "unknown callback 'Unheard'"),
            ("auto_tune: True", "auto_tune is not supported"),
            ("context: {device_target: TPU}", "context.device_target is 'TPU'"),
            ("run_mode: export", "run_mode is 'export'"),
            ("model: {arch: {type: Bert}}", "model.arch.type is not supported"),
            ("model: {model_config: {pre_seq_len: 128}}", "pre_seq_len: 128 is not supported"),
            ("model: {model_config: {pet_config: {pet_type: ptuning2, x: 1}}}", "is 'ptuning2'"),
            ("model: {model_config: {pet_config: {lora_rank: 0}}}", "pet_config.lora_rank is 0"),
            ("model: {model_config: {pet_config: {target_modules: '('}}}", "regular expression"),
        ],
    )
    def test_what_would_change_the_result_is_refused(
        self, tmp_path: Path, text: str, named: str
    ) -> None:
        error = refusal(tmp_path, text + "\n")
        assert named in error.message
        assert error.message.startswith("run.yaml:1: ")


class TestTraining:
    def test_micro_batches_and_accumulation_steps_are_the_batches_of_a_step(
        self, tmp_path: Path
    ) -> None:
        assert load(tmp_path, "seed: 0").accumulation == 1
        assert load(tmp_path, "parallel_config:\n  micro_batch_num: 4\n").accumulation == 4
        text = "runner_config:\n  gradient_accumulation_steps: 3\n"
        assert load(tmp_path, text).accumulation == 3
        both = refusal(tmp_path, text, ["parallel_config.micro_batch_num=2"])
        assert both.message.startswith("run.yaml:2: runner_config.gradient_accumulation_steps")

    def test_intervals_of_evaluation_are_numbers_from_1_or_never(self, tmp_path: Path) -> None:
        settings = load(tmp_path, "do_eval: True\neval_step_interval: 500\n")
        assert (settings.eval_step_interval, settings.eval_epoch_interval) == (500, -1)
        error = refusal(tmp_path, "eval_epoch_interval: 0\n")
        assert error.message == "run.yaml:1: eval_epoch_interval is 0"

    def test_training_resumes_at_the_latest_step_or_at_a_named_one(self, tmp_path: Path) -> None:
        assert load(tmp_path, "resume_training: False\n").resume == ""
        assert load(tmp_path, "resume_training: True\n").resume == "latest"
        name = "glm2_rank_0-2_120.ckpt"
        assert load(tmp_path, "seed: 0", [f"resume_training={name}"]).resume == name
        assert refusal(tmp_path, "resume_training: weights\n").hint.startswith("give True")


class TestNumbers:
    def test_exponents_without_a_point_and_none_are_read_as_the_guide_means_them(
        self, tmp_path: Path
    ) -> None:
        settings = load(
            tmp_path, "lr_schedule:\n  learning_rate: 5e-5\nrunner_config: {batch_size: None}\n"
        )
        assert settings.schedule.learning_rate == 5e-5

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_every_number_that_python_writes_is_read_back(self, number: float) -> None:
        value = parse_value(repr(number))
        assert isinstance(value, float)
        assert value == number


class TestOverrides:
    def test_a_value_of_the_file_is_replaced_and_a_new_section_made(self, tmp_path: Path) -> None:
        overrides = ["seed=7", "runner_config.epochs=3", "lr_schedule.lr_end=1e-7"]
        settings = load(tmp_path, "seed: 1\n", overrides)
        assert (settings.seed, settings.epochs, settings.schedule.end) == (7, 3, 1e-7)

    def test_an_item_of_a_list_is_named_by_its_number(self, tmp_path: Path) -> None:
        text = "callbacks:\n  - type: MFLossMonitor\n  - type: CheckpointMointor\n"
        settings = load(tmp_path, text, ["callbacks.1.save_checkpoint_steps=5"])
        assert settings.checkpoints.every_steps == 5

    def test_the_last_one_counts(self, tmp_path: Path) -> None:
        assert load(tmp_path, "seed: 1\n", ["seed=2", "seed=3"]).seed == 3

    def test_a_value_may_hold_an_equals_sign(self, tmp_path: Path) -> None:
        assert load(tmp_path, "seed: 1\n", ["output_dir=a=b"]).output_dir == "a=b"

    def test_a_wrong_key_is_said_to_come_from_the_command_line(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "seed: 1\n", ["runner_config.epoch=2"])
        assert error.message == "--set: unknown key runner_config.epoch"
        assert error.hint == "did you mean epochs?"

    def test_a_wrong_value_is_said_to_come_from_the_command_line(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "seed: 1\n", ["seed=x"])
        assert error.message == "--set: seed must be a whole number, not 'x'"

    @pytest.mark.parametrize(
        "override",
        ["seed", "=1", "a..b=1", "seed.x=1", "callbacks.5.type=x", "callbacks.x=1", "seed=[1"],
    )
    def test_what_cannot_be_applied_is_a_usage_error(self, tmp_path: Path, override: str) -> None:
        error = refusal(tmp_path, "seed: 1\ncallbacks:\n  - type: MFLossMonitor\n", [override])
        assert isinstance(error, UsageError)
        assert f"--set {override}: " in error.message


class TestAnchors:
    def test_a_changed_section_changes_wherever_it_is_used(self, tmp_path: Path) -> None:
        settings = load(tmp_path, DATASET, ["train_dataset.max_source_length=12"])
        assert settings.train is not None
        assert settings.train.max_source_length == 12

    def test_a_task_with_another_dataset_than_its_own_is_refused(self, tmp_path: Path) -> None:
        text = DATASET.replace("*train_dataset", "{batch_size: 9}")
        error = refusal(tmp_path, text)
        assert "train_dataset_task.dataset_config differs from train_dataset" in error.message

    def test_merged_keys_are_read_and_a_wrong_one_is_placed_in_its_section(
        self, tmp_path: Path
    ) -> None:
        base = "recompute_config: &base {recompute: True}\n"
        assert load(tmp_path, base + "moe_config:\n  <<: *base\n").recompute
        error = refusal(tmp_path, base + "optimizer:\n  <<: *base\n  beta1: 0.8\n")
        assert error.message == "run.yaml:2: unknown key optimizer.recompute"


class TestDataset:
    def test_batch_size_of_the_runner_comes_first_for_training(self, tmp_path: Path) -> None:
        own = load(tmp_path, DATASET).train
        runner = load(tmp_path, DATASET, ["runner_config.batch_size=6"]).train
        assert own is not None
        assert runner is not None
        assert (own.batch_size, runner.batch_size) == (2, 6)

    def test_a_row_must_be_as_long_as_the_sequence(self, tmp_path: Path) -> None:
        length = "model.model_config.seq_length"
        check_row_length(load(tmp_path, DATASET, [f"{length}=16"]))
        with pytest.raises(ConfigError) as caught:
            check_row_length(load(tmp_path, DATASET, [f"{length}=17"]))
        assert "seq_length is 17" in caught.value.message
        assert caught.value.hint == f"set {length} to 16"

    def test_training_needs_a_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no train_dataset"):
            check_row_length(load(tmp_path, "seed: 1\n"))


class TestFindConfig:
    def test_a_path_comes_before_a_shipped_name(self, tmp_path: Path) -> None:
        file = tmp_path / "tiny_cpu.yaml"
        file.write_text("seed: 1\n")
        assert find_config(str(file)) == file

    @pytest.mark.parametrize("name", ["tiny_cpu", "tiny_cpu.yaml"])
    def test_a_shipped_name_is_found_anywhere(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert find_config(name) == CONFIGS / "tiny_cpu.yaml"

    @pytest.mark.parametrize("folder", ["configs/glm2", "../configs/glm2"])
    def test_a_path_of_the_guide_is_the_shipped_one_unless_it_is_there(
        self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "scripts").mkdir()
        monkeypatch.chdir(tmp_path / "scripts")
        name = f"{folder}/run_glm2_6b.yaml"
        assert find_config(name) == CONFIGS / "run_glm2_6b.yaml"
        Path(folder).mkdir(parents=True)
        Path(name).write_text("seed: 1\n")
        assert find_config(name) == Path(name)

    @pytest.mark.parametrize("name", ["absent", "absent/tiny_cpu.yaml", "configs/glm2/absent.yaml"])
    def test_a_name_that_is_not_there_lists_the_shipped_ones(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"no configuration {name}") as caught:
            find_config(name)
        assert "tiny_cpu" in caught.value.hint


GUIDES = {
    "export_glm2_6b", "run_glm2_6b", "run_glm2_6b_finetune", "run_glm2_6b_finetune_2k",
    "run_glm2_6b_finetune_2k_910b", "run_glm2_6b_finetune_910b", "run_glm2_6b_finetune_eval",
    "run_glm2_6b_lora", "run_glm2_6b_lora_2k", "run_glm2_6b_lora_2k_910b",
    "run_glm2_6b_lora_910b", "run_glm2_6b_lora_eval",
}  # fmt: skip


LINEARS = (
    "transformer.encoder.layers.0.self_attention.query_key_value",
    "transformer.encoder.layers.0.self_attention.dense",
    "transformer.encoder.layers.0.mlp.dense_h_to_4h",
    "transformer.output_layer",
)


class TestShipped:
    def test_the_configurations_of_the_guide_are_there(self) -> None:
        assert set(SHIPPED) >= GUIDES

    @pytest.mark.parametrize("name", SHIPPED)
    def test_each_can_do_what_it_is_for(self, name: str) -> None:
        assert main(["check", "--config", name]) == 0
        settings = load_settings(find_config(name))
        assert (settings.train is not None) == (settings.run_mode in ("train", "finetune"))
        lora = settings.model.pet_config
        assert (lora is not None) == ("lora" in name)
        if lora:
            adapted = [name for name in LINEARS if lora.adapts(name)]
            assert adapted == ["transformer.encoder.layers.0.self_attention.query_key_value"]

    @pytest.mark.parametrize("name", sorted(GUIDES))
    def test_those_of_the_guide_are_chatglm2_6b(self, name: str) -> None:
        model = load_settings(find_config(name)).model
        same = ("num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "padded_vocab_size",
                "num_attention_heads", "multi_query_group_num", "layernorm_epsilon")  # fmt: skip
        assert [getattr(model, key) for key in same] == [
            getattr(ModelConfig(), key) for key in same
        ]


class TestLora:
    TEXT = "model:\n  model_config:\n    pet_config:\n      pet_type: lora\n"

    def test_pet_config_is_read(self, tmp_path: Path) -> None:
        text = self.TEXT + "      lora_rank: 4\n      lora_alpha: 8\n      lora_dropout: 0\n"
        lora = load(tmp_path, text + "      target_modules: '.*mlp.*'\n").model.pet_config
        assert lora == LoraConfig(
            lora_rank=4, lora_alpha=8.0, lora_dropout=0.0, target_modules=".*mlp.*"
        )
        assert lora.scale == 2.0

    def test_the_older_names_of_the_guides_files_are_read(self, tmp_path: Path) -> None:
        text = self.TEXT + "      reg_rules: '.*dense.*'\n  arch: {type: ChatGLM2WithLora}\n"
        lora = load(tmp_path, text).model.pet_config
        assert lora is not None
        assert lora.target_modules == ".*dense.*"

    def test_an_unknown_key_is_named_with_its_line(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, self.TEXT + "      lora_rnk: 4\n")
        assert error.message == "run.yaml:5: unknown key model.model_config.pet_config.lora_rnk"
        assert error.hint.startswith("did you mean lora_rank")

    def test_a_pattern_that_names_no_layer_is_refused_with_its_line(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, self.TEXT + "      target_modules: q_proj\n")
        assert error.message == (
            "run.yaml:5: pet_config.target_modules 'q_proj' names no linear layer"
        )
        assert "self_attention.query_key_value" in error.hint

    def test_an_empty_pet_config_is_none(self, tmp_path: Path) -> None:
        assert load(tmp_path, "model: {model_config: {pet_config: }}\n").model.pet_config is None

    def test_what_is_saved_and_divided_is_read_from_parallel(self, tmp_path: Path) -> None:
        text = (
            "parallel:\n  parallel_mode: 1\n  enable_parallel_optimizer: True\n"
            "  strategy_ckpt_config: {save_file: a.ckpt, only_trainable_params: True}\n"
        )
        settings = load(tmp_path, text)
        assert settings.checkpoints.only_trainable
        assert settings.parallel.optimizer_shard
        assert "parallel.parallel_mode" in settings.unused


def test_a_wrong_value_of_the_model_is_placed_at_its_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "model:\n  model_config:\n    num_layers: 0\n")
    assert error.message == "run.yaml:3: model_config.num_layers is 0; at least 1"


def test_keys_of_the_guides_model_that_cannot_apply_are_named(tmp_path: Path) -> None:
    text = "model:\n  model_config: {use_flash_attention: True, block_size: 16, pre_seq_len: 0}\n"
    assert load(tmp_path, text).unused == (
        "model.model_config.use_flash_attention", "model.model_config.block_size"
    )  # fmt: skip


def test_bfloat16_is_refused_where_mindspore_has_none(tmp_path: Path) -> None:
    text = "context: {device_target: CPU}\nmodel: {model_config: {compute_dtype: bfloat16}}\n"
    assert "MindSpore has no bfloat16 on CPU" in refusal(tmp_path, text).message
    assert load(tmp_path, text.replace("CPU", "Ascend")).model.compute_dtype == "bfloat16"


class TestModelConfig:
    def test_the_defaults_are_chatglm2_6b(self) -> None:
        config = ModelConfig()
        assert (config.groups, config.query_size, config.kv_size) == (2, 4096, 256)

    def test_without_multi_query_attention_each_head_has_a_group(self) -> None:
        config = ModelConfig(multi_query_attention=False)
        assert config.groups == config.num_attention_heads

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"num_attention_heads": 3}, "3 attention heads do not divide into 2"),
            ({"kv_channels": 6}, "kv_channels is 6"),
            ({"num_layers": 0}, "num_layers is 0"),
            ({"seq_length": 3}, "seq_length is 3"),
            ({"max_decode_length": 0}, "max_decode_length is 0; at least 1"),
            ({"pad_token_id": 65024}, "pad_token_id is 65024; below padded_vocab_size"),
            ({"repetition_penalty": float("nan")}, "repetition_penalty is nan; above 0"),
            ({"compute_dtype": "float8"}, "compute_dtype is 'float8'"),
            ({"hidden_dropout": 0.1}, "hidden_dropout: 0.1 is not supported"),
            ({"rmsnorm": False}, "rmsnorm: False is not supported"),
        ],
    )
    def test_contradictions_and_other_networks_are_refused(self, values: dict, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            ModelConfig(**values)
