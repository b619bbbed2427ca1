"""YAML as users of the guide have it: loaded as it is, and what cannot apply is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from glm2.__main__ import main
from glm2.check import judge
from glm2.settings import Settings, load_settings, parse_settings
from glm2.yaml_source import read_yaml

SHARED = Path(os.environ.get("GLM2_SHARED", str(Path(__file__).parents[3].parent / "shared")))
GUIDE = SHARED / "reference/chatglm2_mindformers_guide.md"

# Every key that MindFormers' own files for ChatGLM2 have, those of LoRA and of newer ones too.
USERS = """\
seed: 0
run_mode: 'train'
output_dir: './output'  # do not change
load_checkpoint: 'glm2_6b'
src_strategy_path_or_dir: ''
auto_trans_ckpt: False  # If true, auto transform load_checkpoint to load in distributed model
only_save_strategy: False
resume_training: False
context:
  mode: 0 #0--Graph Mode; 1--Pynative Mode
  device_target: "Ascend"
  enable_graph_kernel: False
  graph_kernel_flags: "--disable_expand_ops=Softmax,Dropout"
  max_call_depth: 10000
  max_device_memory: "30GB"
  save_graphs: False
  device_id: 0
remote_save_url: "Please input obs url on AICC platform."
model:
  model_config:
    type: ChatGLM2Config
    batch_size: 1   # only for incremental infer
    num_layers: 28
    padded_vocab_size: 65024
    hidden_size: 4096
    ffn_hidden_size: 13696
    kv_channels: 128
    num_attention_heads: 32
    seq_length: 193
    hidden_dropout: 0.0
    attention_dropout: 0.0
    layernorm_epsilon: 1e-5
    rope_ratio: 1
    rmsnorm: True
    apply_residual_connection_post_layernorm: False
    post_layer_norm: True
    add_bias_linear: False
    add_qkv_bias: True
    bias_dropout_fusion: True
    multi_query_attention: True
    multi_query_group_num: 2
    apply_query_key_layer_scaling: True
    attention_softmax_in_fp32: True
    fp32_residual_connection: False
    quantization_bit: 0
    pre_seq_len: None
    prefix_projection: False
    param_init_type: "float16"
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float32"
    use_past: False
    use_flash_attention: True
    block_size: 16
    num_blocks: 128
    is_dynamic: True
    eos_token_id: 2
    pad_token_id: 0
    max_decode_length: 256
    checkpoint_name_or_path: "glm2_6b"
    is_sample_acceleration: False
    top_k: 1
    top_p: 1
    repetition_penalty: 1
    do_sample: True
    pet_config:
      pet_type: lora
      lora_rank: 8
      lora_alpha: 32
      lora_dropout: 0.1
      target_modules: '.*query_key_value*'
  arch:
    type: ChatGLM2ForConditionalGeneration
trainer:
  type: CausalLanguageModelingTrainer
  model_name: 'glm2_6b_lora'
do_eval: False
eval_step_interval: 500
eval_epoch_interval: -1
metric:
  type: ADGENMetric
processor:
  return_tensors: ms
  tokenizer: {type: ChatGLM2Tokenizer, bos_token: '<sop>', eos_token: '<eop>'}
  type: GLMProcessor
train_dataset: &train_dataset
  data_loader:
    type: ADGenDataLoader
    dataset_dir: "/path/to/AdvertiseGen/train.json"
    shuffle: True
    phase: "train"
    version: 2
    origin_columns: ["content", "summary"]
  tokenizer:
    type: ChatGLM2Tokenizer
    vocab_file: "/path/to/tokenizer.model"
  input_columns: ["input_ids", "labels"]
  max_source_length: 64
  max_target_length: 128
  ignore_pad_token_for_loss: True
  num_parallel_workers: 8
  python_multiprocessing: False
  drop_remainder: True
  batch_size: 1
  repeat: 1
  numa_enable: False
  prefetch_size: 1
  seed: 0
train_dataset_task:
  type: KeyWordGenDataset
  dataset_config: *train_dataset
runner_config:
  epochs: 1
  batch_size: 8
  sink_mode: True
  sink_size: 4
runner_wrapper:
  type: MFTrainOneStepCell
  scale_sense:
    type: DynamicLossScaleUpdateCell
    loss_scale_value: 4294967296
    scale_factor: 2
    scale_window: 1000
  use_clip_grad: True
lr_schedule:
  type: polynomial
  learning_rate: 5.e-5
  lr_end: 1.e-6
  warmup_steps: 2000
  total_steps: -1 # -1 means it will load the total steps of the dataset
layer_scale: False
layer_decay: 0.65
optimizer:
  type: FusedAdamWeightDecay
  beta1: 0.9
  beta2: 0.95
  eps: 1.e-8
  weight_decay: 0.1
lr_scale: False
lr_scale_factor: 256
use_parallel: False
parallel:
  parallel_mode: 1 # 0-dataset, 1-semi, 2-auto, 3-hybrid
  gradients_mean: False
  loss_repeated_mean: True
  enable_alltoall: False
  full_batch: True
  search_mode: "sharding_propagation"
  enable_parallel_optimizer: True
  strategy_ckpt_config:
    save_file: "./ckpt_strategy.ckpt"
    only_trainable_params: False
parallel_config:
  data_parallel: 8
  model_parallel: 1
  pipeline_stage: 1
  expert_parallel: 1
  optimizer_shard: False
  micro_batch_num: 1
  vocab_emb_dp: True
  gradient_aggregation_group: 4
micro_batch_interleave_num: 1
moe_config: {expert_num: 1, capacity_factor: 1.05, aux_loss_factor: 0.05, num_experts_chosen: 1}
recompute_config:
  recompute: True
  parallel_optimizer_comm_recompute: False
  mp_comm_recompute: True
  recompute_slice_activation: True
auto_tune: False
filepath_prefix: './autotune'
autotune_per_step: 10
profile: False
profile_start_step: 1
profile_stop_step: 10
init_start_profile: True
profile_communication: True
profile_memory: True
callbacks:
  - type: MFLossMonitor
  - type: SummaryMonitor
    keep_default_action: True
  - type: CheckpointMointor
    prefix: "glm2-6b-lora"
    save_checkpoint_steps: 500
    keep_checkpoint_max: 2
    integrated_save: False
    async_save: False
  - type: ObsMonitor
    keep_last: False
eval_callbacks:
  - type: ObsMonitor
    keep_last: False
"""
NAMED = {
    "src_strategy_path_or_dir", "remote_save_url", "trainer", "metric", "processor", "layer_decay",
    "lr_scale_factor", "moe_config", "filepath_prefix", "autotune_per_step", "eval_callbacks",
    "profile_start_step", "profile_stop_step", "init_start_profile", "profile_communication",
    "profile_memory", "callbacks SummaryMonitor", "callbacks ObsMonitor",
    *(f"context.{key}" for key in (
        "enable_graph_kernel", "graph_kernel_flags", "max_call_depth", "save_graphs")),
    *(f"model.model_config.{key}" for key in (
        "use_flash_attention", "block_size", "num_blocks", "is_dynamic", "is_sample_acceleration")),
    *(f"train_dataset.{key}" for key in (
        "input_columns", "num_parallel_workers", "python_multiprocessing", "numa_enable",
        "prefetch_size")),
    *(f"parallel.{key}" for key in (
        "parallel_mode", "gradients_mean", "loss_repeated_mean", "enable_alltoall", "full_batch",
        "search_mode", "strategy_ckpt_config.save_file")),
    *(f"recompute_config.{key}" for key in (
        "parallel_optimizer_comm_recompute", "mp_comm_recompute", "recompute_slice_activation")),
    "runner_config.sink_mode", "runner_config.sink_size",
    "callbacks.2.integrated_save", "callbacks.2.async_save",
}  # fmt: skip


def load(folder: Path, text: str) -> Settings:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file)


class TestAUsersFile:
    def test_its_values_are_taken(self, tmp_path: Path) -> None:
        settings = load(tmp_path, USERS)
        assert settings.train is not None
        assert (settings.train.batch_size, settings.train.max_target_length) == (8, 128)
        assert settings.loss_scale.initial == 2**32
        assert settings.schedule.warmup_steps == 2000
        assert settings.checkpoints.prefix == "glm2-6b-lora"
        assert settings.model.pet_config is not None
        assert settings.parallel.data_parallel == 8

    def test_what_has_no_effect_is_named_and_nothing_else(self, tmp_path: Path) -> None:
        unused = load(tmp_path, USERS).unused
        assert len(unused) == len(set(unused))
        # Of issue 5: named until training does it.
        later = {"parallel.enable_parallel_optimizer", "parallel_config.gradient_aggregation_group",
                 "parallel_config.optimizer_shard"}  # fmt: skip
        assert set(unused) - later == NAMED

    def test_check_passes_and_says_them(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load(tmp_path, USERS)
        assert main(["check", "--config", str(tmp_path / "run.yaml")]) == 0
        said = capsys.readouterr().err
        assert all(f"{key} has no effect" in said for key in NAMED)


@pytest.mark.skipif(not GUIDE.is_file(), reason=f"the guide is not at {GUIDE} (GLM2_SHARED)")
def test_every_piece_of_yaml_in_the_guide_is_read(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    assert len(found) >= 4
    for indent, body in found:
        piece = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        if "data_loader" not in piece:  # changes to a dataset that stands elsewhere
            piece = re.sub(r"^(train|eval)_dataset:.*\n(  .*\n)*", "", piece, flags=re.MULTILINE)
        file = tmp_path / "run.yaml"
        file.write_text(piece, encoding="utf-8")
        source = read_yaml(file)
        assert not judge(parse_settings(source), source, "eval").faults
