"""int8 weights for the linear layers: one scale for each output channel, symmetric.

Only the weights are int8: a layer turns them back into its compute type before its product, so
that activations keep their range. The file and the memory of the weights shrink by the factor.
"""

from __future__ import annotations

import math
from typing import Iterable, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from glm2.layers import Linear
from glm2.model import Glm2, learned_tokens, next_token_loss

LEVELS = 127
"""Weights become whole numbers from -127 to 127."""


class QuantizedLinear(nn.Cell):
    """The Linear layer ``of`` with its weight as int8 [out, in] and a scale [out, 1]."""

    def __init__(self, of: Linear) -> None:
        super().__init__()
        self.inputs, self.outputs, self.dtype = of.inputs, of.outputs, of.dtype
        # float32 holds the values of all three types exactly; NumPy has no bfloat16.
        weight, scale = quantized(of.weight.astype(ms.float32).asnumpy())
        self.weight = Parameter(Tensor(weight), name="weight", requires_grad=False)
        self.scale = Parameter(Tensor(scale), name="scale", requires_grad=False)
        self.has_bias = of.has_bias
        if of.has_bias:
            self.bias = of.bias
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        shape = x.shape
        weight = self.weight.astype(self.dtype) * self.scale.astype(self.dtype)
        y = self.matmul(x.reshape((-1, self.inputs)).astype(self.dtype), weight)
        if self.has_bias:
            y = y + self.bias.astype(self.dtype)
        return y.reshape((*shape[:-1], self.outputs))  # [B·T, out] -> [B, T, out]


def quantize(model: Glm2) -> int:
    """Put a QuantizedLinear in the place of every Linear; returns how many there are."""
    count = 0
    for place, parent in list(model.cells_and_names()):
        for name, child in list(parent.name_cells().items()):
            if isinstance(child, Linear):
                layer = QuantizedLinear(child)
                setattr(parent, name, layer)
                # MindSpore gives the parameters of a cell that comes later its own name only.
                for parameter in layer.get_parameters():
                    kind = parameter.name.rpartition(".")[2]
                    parameter.name = f"{place}.{name}.{kind}"
                count += 1
    return count


def quantized(weight: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """int8 weight [out, in] and float32 scale [out, 1] of a float ``weight`` [out, in].

    A channel's largest magnitude becomes 127. No weight is off by more than half a scale.
    """
    scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float32) / LEVELS
    # A channel of zeros, or of values too small to divide by: all of it becomes 0.
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    levels = np.clip(np.rint(weight / scale), -LEVELS, LEVELS)
    return levels.astype(np.int8), scale


def perplexity(model: Glm2, batches: Iterable[Tuple[np.ndarray, np.ndarray]]) -> float:
    """exp of the mean loss over all learned tokens of ``(ids, labels)`` [B, T] each."""
    measure = _Loss(model)
    measure.set_train(False)
    loss = tokens = 0.0
    for ids, labels in batches:
        both = measure(Tensor(ids), Tensor(labels))
        loss += float(both[0].asnumpy())
        tokens += float(both[1].asnumpy())
    return math.exp(loss / tokens)


class _Loss(nn.Cell):
    """Sum of the losses of a batch, and how many tokens it is over."""

    def __init__(self, model: Glm2) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
        return next_token_loss(self.model(ids), labels), learned_tokens(labels)
