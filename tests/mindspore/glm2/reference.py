"""ChatGLM2's forward pass written once more, in plain float64 NumPy, from its description."""

from __future__ import annotations

from typing import Dict

import mindspore as ms
import numpy as np

from glm2.config import ModelConfig
from glm2.model import Glm2

Weights = Dict[str, np.ndarray]


def random_weights(model: Glm2, seed: int = 0) -> Weights:
    """Give the model weights of which each one matters to the result; returns them."""
    draw = np.random.default_rng(seed)
    weights: Weights = {}
    for parameter in model.get_parameters():
        shape = parameter.shape
        if "layernorm" in parameter.name:
            value = draw.uniform(0.5, 1.5, shape)
        elif parameter.name.endswith("embedding_table"):
            value = draw.normal(0.0, 1.0, shape)
        elif parameter.name.endswith("bias"):
            value = draw.normal(0.0, 0.5, shape)
        else:
            value = draw.normal(0.0, 1.5 / np.sqrt(shape[1]), shape)
        value = value.astype(np.float32)
        parameter.set_data(ms.Tensor(value))
        weights[parameter.name] = value.astype(np.float64)
    return weights


def forward(config: ModelConfig, weights: Weights, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one row of token ids [T]."""
    x = weights["transformer.embedding.embedding_table"][ids]
    for number in range(config.num_layers):
        name = f"transformer.encoder.layers.{number}"
        normed = _norm(x, weights[f"{name}.input_layernorm.weight"], config)
        x = x + _attention(normed, weights, f"{name}.self_attention", config)
        normed = _norm(x, weights[f"{name}.post_attention_layernorm.weight"], config)
        both = normed @ weights[f"{name}.mlp.dense_h_to_4h.weight"].T
        gate, up = np.split(both, 2, axis=-1)
        swish = gate / (1.0 + np.exp(-gate))
        x = x + (swish * up) @ weights[f"{name}.mlp.dense_4h_to_h.weight"].T
    x = _norm(x, weights["transformer.encoder.final_layernorm.weight"], config)
    return x @ weights["transformer.output_layer.weight"].T


def _norm(x: np.ndarray, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    square = np.mean(x**2, axis=-1, keepdims=True)
    return x / np.sqrt(square + config.layernorm_epsilon) * weight


def _attention(x: np.ndarray, weights: Weights, name: str, config: ModelConfig) -> np.ndarray:
    """One head at a time, and one token at a time."""
    heads, groups, size = config.num_attention_heads, config.groups, config.kv_channels
    fused = x @ weights[f"{name}.query_key_value.weight"].T
    fused = fused + weights[f"{name}.query_key_value.bias"]
    queries, rest = fused[:, : heads * size], fused[:, heads * size :]
    keys, values = rest[:, : groups * size], rest[:, groups * size :]
    mixed = np.zeros_like(queries)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        group = head // (heads // groups)
        shared = slice(group * size, (group + 1) * size)
        query, key, value = _turn(queries[:, own]), _turn(keys[:, shared]), values[:, shared]
        for token in range(len(x)):
            scores = key[: token + 1] @ query[token] / np.sqrt(size)
            odds = np.exp(scores - scores.max())
            mixed[token, own] = odds / odds.sum() @ value[: token + 1]
    return mixed @ weights[f"{name}.dense.weight"].T


def _turn(x: np.ndarray) -> np.ndarray:
    """Rotary embedding of one head [T, D]: complex numbers are the pairs of the first half."""
    positions, size = x.shape
    half = size // 2
    pairs = x[:, 0:half:2] + 1j * x[:, 1:half:2]
    speed = 10000.0 ** (-2.0 * np.arange(half // 2) / half)
    pairs = pairs * np.exp(1j * np.outer(np.arange(positions), speed))
    result = x.copy()
    result[:, 0:half:2], result[:, 1:half:2] = pairs.real, pairs.imag
    return result
