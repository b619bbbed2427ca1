"""LoRA: adapters beside frozen linear layers, how they are loaded, and merged into the weights.

The output of an adapted layer is ``W x + alpha / rank · B A dropout(x)``. The adapters are kept
in float32 whatever the type of the weights: they are small, and so are their updates.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, initializer

from glm2.adapters import DOWN, UP, adapted_layers, is_adapter
from glm2.checkpoint import fill, find_weights, read_weights
from glm2.config import LoraConfig, ModelConfig
from glm2.dropout import Dropout
from glm2.errors import CheckpointError
from glm2.layers import Linear, float_type
from glm2.model import Glm2


class Adapter(nn.Cell):
    """The part that LoRA adds to the output of one linear layer."""

    def __init__(
        self, linear: Linear, lora: LoraConfig, config: ModelConfig, place: int = 0
    ) -> None:
        super().__init__(auto_prefix=False)
        self.inputs, self.outputs = linear.inputs, linear.outputs
        self.scale = lora.scale
        self.dtype = float_type(config.compute_dtype)
        # As MindPet begins: A as a linear layer of PyTorch, B zero, so that nothing changes yet.
        down = initializer(HeUniform(math.sqrt(5)), (lora.lora_rank, self.inputs), ms.float32)
        self.down = Parameter(down, name=DOWN)
        self.up = Parameter(initializer("zeros", (self.outputs, lora.lora_rank), ms.float32), UP)
        self.dropout = Dropout(lora.lora_dropout, place)
        self.matmul = ops.MatMul(transpose_b=True)
        self.between: Optional[nn.Cell] = None
        """What ranks that share the layer do between the halves; see tensor_parallel.py."""

    def construct(self, x: Tensor) -> Tensor:
        """``x`` [.., in] -> [.., out], in the compute type."""
        shape = x.shape
        x = self.dropout(x.reshape((-1, self.inputs)).astype(self.dtype))
        x = self.matmul(x, self.down.astype(self.dtype))  # [B·T, rank]
        if self.between is not None:
            x = self.between(x)
        x = self.matmul(x, self.up.astype(self.dtype)) * self.scale
        return x.reshape((*shape[:-1], self.outputs))


def add_adapters(model: Glm2) -> None:
    """Give the layers of ``pet_config.target_modules`` fresh adapters and freeze all else.

    Without ``pet_config`` nothing changes. To be called before the model's first graph is
    compiled, as ``merge`` is. ``model.trainable_params()`` are then the adapters.
    """
    lora = model.config.pet_config
    if lora is None:
        return
    names = adapted_layers(model.config)
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    for name, cell in list(model.cells_and_names()):
        if name in names:
            adapter = cell.adapter = Adapter(cell, lora, model.config, list(names).index(name))
            # As attributes of the layer itself would be named, which they are in MindPet.
            adapter.down.name, adapter.up.name = f"{name}.{DOWN}", f"{name}.{UP}"


def load_adapted(model: Glm2, file: Path, base: str) -> str:
    """Fill a model that has adapters from a file; returns what was loaded, in words.

    The file may hold weights and adapters, weights alone (the adapters stay as they are), or
    adapters alone: then the weights come from ``base``, a path or a name. CheckpointError lists
    all that is missing or does not fit.
    """
    found, source = read_weights(file), str(file)
    adapters = [name for name in found if is_adapter(name)]
    if adapters and len(adapters) == len(found):
        if not base:
            raise CheckpointError(
                f"{file} holds adapters alone, without the weights that they belong to",
                hint="name the base weights in model.model_config.checkpoint_name_or_path",
            )
        below = find_weights(base)
        weights = {k: v for k, v in read_weights(below).items() if not is_adapter(k)}
        found, source = {**weights, **found}, f"{below} and the adapters of {file}"
    wanted = [p for p in model.get_parameters() if adapters or not is_adapter(p.name)]
    fill(wanted, found, source)
    return source if adapters else f"{source} (no adapters in it)"


def merge(model: Glm2) -> None:
    """Add the adapters to the weights they belong to, ``W + alpha / rank · B A``, and drop them.

    The sum is made in float32 and then has the weights' type. The model needs no adapters
    afterwards and is as fast as one that never had them. To be called before the model's first
    graph is compiled.
    """
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, Linear) and cell.adapter is not None:
            adapter = cell.adapter
            product = adapter.up.asnumpy() @ adapter.down.asnumpy()
            whole = cell.weight.astype(ms.float32).asnumpy() + np.float32(adapter.scale) * product
            cell.weight.set_data(Tensor(whole).astype(cell.weight.dtype))
            cell.adapter = None
