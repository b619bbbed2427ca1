"""The official model's folder on Hugging Face: config.json, shards and their index."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

import numpy as np

from glm2.config import ModelConfig
from glm2.errors import ConfigError
from glm2.formats.cast import from_float32, to_float32
from glm2.formats.tensor import Content, Shape, nbytes
from glm2.weights import INV_FREQ

INDEX = "model.safetensors.index.json"

_ROTARY_BASE = 10000.0

# The keys of config.json that make the network; the others are for other programs.
_NETWORK = (
    "num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads",
    "multi_query_attention", "multi_query_group_num", "padded_vocab_size", "seq_length",
    "layernorm_epsilon", "add_qkv_bias", "post_layer_norm", "rmsnorm", "add_bias_linear",
    "apply_query_key_layer_scaling", "apply_residual_connection_post_layernorm",
    "attention_softmax_in_fp32", "fp32_residual_connection", "bias_dropout_fusion",
    "hidden_dropout", "attention_dropout", "quantization_bit", "pre_seq_len",
    "prefix_projection", "eos_token_id", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Constant:
    """A small tensor that is computed."""

    name: str
    dtype: str
    shape: Shape
    data: bytes

    def blocks(self) -> Iterator[bytes]:
        yield self.data


def read_config(file: Path) -> ModelConfig:
    """The network of the official ``config.json``; ConfigError for another architecture."""
    try:
        values = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != "chatglm":
        raise ConfigError(
            f"{file} describes no ChatGLM2: its model_type is {kind!r}, not 'chatglm'",
            hint="give the official model's folder, or --config with the model's YAML",
        )
    if values.get("rope_ratio", 1) != 1:
        raise ConfigError(f"{file}: rope_ratio {values['rope_ratio']} is not ChatGLM2-6B's network")
    hints = typing.get_type_hints(ModelConfig)
    chosen = {key: values[key] for key in _NETWORK if values.get(key) is not None}
    for key, value in chosen.items():
        kinds = {float: (int, float), Optional[int]: (int,)}.get(hints[key], (hints[key],))
        if not isinstance(value, kinds) or (isinstance(value, bool) and hints[key] is not bool):
            raise ConfigError(f"{file}: {key} is {value!r}")
    try:
        return ModelConfig(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", hint=error.hint) from None


def config_text(config: ModelConfig, dtype: str) -> str:
    """``config.json`` of a network, with the official keys."""
    values = dataclasses.asdict(config)
    official: Dict[str, object] = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        **{key: values[key] for key in _NETWORK},
        "torch_dtype": dtype,
        "tie_word_embeddings": False,
    }
    return json.dumps(official, indent=2) + "\n"


def inverse_frequencies(config: ModelConfig, dtype: str) -> Constant:
    """``rotary_pos_emb.inv_freq`` [D/4] as the official code computes it: in the weights' type.

    Each step is rounded, as PyTorch does (``RotaryEmbedding`` of the official code).
    """

    def rounded(values: np.ndarray) -> np.ndarray:
        return to_float32(from_float32(values.astype(np.float32), dtype), dtype)

    turned = config.kv_channels // 2
    exponents = rounded(np.arange(0, turned, 2, dtype=np.float64) / turned)
    base = rounded(np.array([_ROTARY_BASE]))
    powers = rounded(base.astype(np.float64) ** exponents)
    values = from_float32((1.0 / powers).astype(np.float32), dtype)
    return Constant(INV_FREQ, dtype, (len(exponents),), values)


def shard(tensors: Sequence[Content], limit: int) -> Dict[str, List[Content]]:
    """File name -> its tensors, in order, each file at most ``limit`` bytes of content where a
    single tensor is not more."""
    groups: List[List[Content]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + nbytes(tensor) > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes(tensor)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
        for i, group in enumerate(groups, 1)
    }


def index_text(shards: Dict[str, List[Content]]) -> str:
    """The index that says in which file each tensor is."""
    total = sum(nbytes(tensor) for group in shards.values() for tensor in group)
    places = {tensor.name: file for file, group in shards.items() for tensor in group}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"
