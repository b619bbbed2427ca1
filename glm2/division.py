"""What each of several ranks holds of every weight when they share the layers (model parallel).

Megatron's scheme: the first projection of attention and of the feed-forward block is divided by
outputs, the second by inputs, the vocabulary by rows. Nothing here needs MindSpore.
"""

from __future__ import annotations

from typing import Dict, Optional

from glm2.adapters import DOWN, adapter_shapes
from glm2.config import ModelConfig
from glm2.errors import ConfigError
from glm2.weights import Shape, weight_shapes

_OUTPUTS = ("query_key_value", "dense_h_to_4h", "output_layer")
_INPUTS = ("self_attention.dense", "dense_4h_to_h")


def divided_axis(name: str, *, vocab_emb_dp: bool) -> Optional[int]:
    """The axis of a weight or adapter that ranks share; None: each holds it whole.

    >>> divided_axis("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight", vocab_emb_dp=True)
    1
    """
    layer, _, kind = name.rpartition(".")
    if kind == "embedding_table":
        return None if vocab_emb_dp else 0
    if layer.endswith(_OUTPUTS):
        return None if kind == DOWN else 0
    if layer.endswith(_INPUTS):
        return 1 if kind in ("weight", DOWN) else None
    return None


def rank_groups(config: ModelConfig, model_parallel: int) -> int:
    """Key/value groups on each rank; with more ranks than groups, ranks share copies of one."""
    return max(config.groups // model_parallel, 1)


def rank_shapes(
    config: ModelConfig, model_parallel: int = 1, *, vocab_emb_dp: bool = True
) -> Dict[str, Shape]:
    """Name and shape of every weight and adapter as one of ``model_parallel`` ranks holds it.

    Raises ConfigError when the network cannot be divided so.
    """
    check_divisible(config, model_parallel, vocab_emb_dp=vocab_emb_dp)
    heads = config.num_attention_heads // model_parallel
    fused = (heads + 2 * rank_groups(config, model_parallel)) * config.kv_channels
    shapes: Dict[str, Shape] = {}
    for name, shape in {**weight_shapes(config), **adapter_shapes(config)}.items():
        axis = divided_axis(name, vocab_emb_dp=vocab_emb_dp)
        if axis is None:
            shapes[name] = shape
            continue
        # Queries are divided; keys and values may be copied, so their part is no simple share.
        own = fused if "query_key_value" in name else shape[axis] // model_parallel
        shapes[name] = (*shape[:axis], own, *shape[axis + 1 :])
    return shapes


def check_divisible(config: ModelConfig, model_parallel: int, *, vocab_emb_dp: bool = True) -> None:
    """Raise ConfigError unless so many ranks can share the layers."""
    for what in ("num_attention_heads", "ffn_hidden_size", "padded_vocab_size"):
        if getattr(config, what) % model_parallel:
            raise ConfigError(
                f"model_config.{what} {getattr(config, what)} cannot be divided among "
                f"{model_parallel} ranks",
                hint=f"make parallel_config.model_parallel a divisor of {what}",
            )
    groups = config.groups
    if groups % model_parallel and model_parallel % groups:
        raise ConfigError(
            f"{groups} key/value groups cannot be divided among {model_parallel} ranks",
            hint="make parallel_config.model_parallel a divisor or a multiple of the groups",
        )
