"""LoRA's adapters by name and shape. Nothing here needs MindSpore.

The names are MindPet's, as in the guide's checkpoints: beside ``<layer>.weight`` stand
``<layer>.mindpet_delta_lora_a`` (A, rank × inputs) and ``<layer>.mindpet_delta_lora_b``
(B, outputs × rank).
"""

from __future__ import annotations

from typing import Dict

from glm2.config import ModelConfig
from glm2.errors import ConfigError
from glm2.weights import Shape, weight_shapes

DOWN, UP = "mindpet_delta_lora_a", "mindpet_delta_lora_b"


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's, not a weight or the optimizer's state of one."""
    return name.endswith((f".{DOWN}", f".{UP}")) and not name.startswith("adam_")


def own_name(name: str) -> str:
    """The name of a parameter here; some releases of MindPet write the last letter large.

    >>> own_name("a.query_key_value.mindpet_delta_lora_A")
    'a.query_key_value.mindpet_delta_lora_a'
    """
    large = (f".{DOWN[:-1]}A", f".{UP[:-1]}B")
    return name[:-1] + name[-1].lower() if name.endswith(large) else name


def adapted_layers(config: ModelConfig) -> Dict[str, Shape]:
    """Full name of each linear layer with adapters, and the shape of its weight.

    Raises ConfigError when ``target_modules`` names none.
    """
    lora = config.pet_config
    if lora is None:
        return {}
    linears = {
        name[: -len(".weight")]: shape
        for name, shape in weight_shapes(config).items()
        if name.endswith(".weight") and len(shape) == 2
    }
    found = {name: shape for name, shape in linears.items() if lora.adapts(name)}
    if not found:
        first = [name for name in linears if ".layers.0." in name]
        raise ConfigError(
            f"pet_config.target_modules {lora.target_modules!r} names no linear layer",
            hint=f"a layer's are {', '.join(first)}",
        )
    return found


def adapter_shapes(config: ModelConfig) -> Dict[str, Shape]:
    """Name and shape of every adapter; empty without ``pet_config``."""
    shapes: Dict[str, Shape] = {}
    for name, (outputs, inputs) in adapted_layers(config).items():
        rank = config.pet_config.lora_rank if config.pet_config else 0
        shapes[f"{name}.{DOWN}"] = (rank, inputs)
        shapes[f"{name}.{UP}"] = (outputs, rank)
    return shapes
