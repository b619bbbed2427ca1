"""The weights of a network by name and shape, and what else a checkpoint may hold.

Names are those of the guide's MindSpore checkpoints. Nothing here needs MindSpore.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from glm2.config import ModelConfig

Shape = Tuple[int, ...]

ENDINGS = (".ckpt", ".safetensors")
"""Of files of weights that a network is filled from."""
INV_FREQ = "transformer.rotary_pos_emb.inv_freq"
"""A constant that the official weights carry along; here it is computed."""


@dataclass(frozen=True)
class Progress:
    """Where training stands, as scalars of the checkpoint (MindFormers' names)."""

    epoch_num: int = 0
    """Epochs that are complete or under way, from 1."""
    step_num: int = 0
    """Steps since the beginning, skipped ones included."""
    global_step: int = 0
    """Updates of the weights: steps without the skipped ones."""
    data_rows: int = 0
    """Rows consumed by all ranks since the beginning."""
    epoch_rows: int = 0
    """Those of them that belong to the epoch under way: the position in its order."""
    data_crc: int = 0
    """Names the rows and their order; see ``Batches.crc``."""
    loss_scale: float = 1.0
    scale_good_steps: int = 0
    """Good steps that the loss scale has seen."""


PROGRESS_NAMES = tuple(Progress.__dataclass_fields__)
_LAYER = re.compile(r"layers\.(\d+)\.")
_NOT_WEIGHTS = re.compile(
    r"^(adam_[mv]\.|accu_grads\.|(current_iterator_step|last_overflow_iterator_step|scale_sense|"
    r"learning_rate|beta[12]_power)$)|rotary_pos_emb\.inv_freq$"
)


def weight_shapes(config: ModelConfig) -> Dict[str, Shape]:
    """Name and shape of every weight, in the order of the network's layers."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    fused = config.query_size + 2 * config.kv_size
    shapes: Dict[str, Shape] = {
        "transformer.embedding.embedding_table": (config.padded_vocab_size, hidden)
    }
    for number in range(config.num_layers):
        layer = f"transformer.encoder.layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.self_attention.query_key_value.weight"] = (fused, hidden)
        if config.add_qkv_bias:
            shapes[f"{layer}.self_attention.query_key_value.bias"] = (fused,)
        shapes[f"{layer}.self_attention.dense.weight"] = (hidden, config.query_size)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.dense_h_to_4h.weight"] = (2 * ffn, hidden)
        shapes[f"{layer}.mlp.dense_4h_to_h.weight"] = (hidden, ffn)
    if config.post_layer_norm:
        shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    shapes["transformer.output_layer.weight"] = (config.padded_vocab_size, hidden)
    return shapes


def is_state(name: str) -> bool:
    """Whether a parameter of a checkpoint is no weight: optimizer, progress, or a constant."""
    return name in PROGRESS_NAMES or _NOT_WEIGHTS.search(name) is not None


def compare(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> List[str]:
    """What differs between two sets of named shapes, in words; empty: nothing."""
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} is {_text(found[name])}, the model needs {_text(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return problems


def listed(problems: Sequence[str]) -> str:
    """Each on a line of its own; those that differ in the number of a layer only, as one:
    ``layers.2-27.``"""
    numbers: Dict[str, List[int]] = {}
    for problem in problems:
        match = _LAYER.search(problem)
        kind = _LAYER.sub("layers.*.", problem)
        numbers.setdefault(kind, []).append(int(match[1]) if match else 0)
    return "".join(
        f"\n    {kind.replace('layers.*.', f'layers.{_ranges(found)}.')}"
        for kind, found in numbers.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 -> ``1-3,7``."""
    runs: List[List[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
