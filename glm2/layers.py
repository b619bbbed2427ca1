"""Linear layer, RMSNorm, rotary embedding and the gated feed-forward block.

Shapes: B rows, T tokens a row, H hidden size, F feed-forward size, D channels of a head.
"""

from __future__ import annotations

from typing import Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, initializer

from glm2.config import ModelConfig
from glm2.fused import AddBias, RootMeanSquare, SwiGlu

ROTARY_BASE = 10000.0


class Linear(nn.Cell):
    """``y = x Wᵀ (+ b)``; the product runs in the compute type, the weight keeps its own."""

    def __init__(
        self, inputs: int, outputs: int, config: ModelConfig, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.dtype = float_type(config.compute_dtype)
        kind = float_type(config.param_init_type)
        self.weight = new_weight((outputs, inputs), kind, Normal(config.initializer_range))
        self.has_bias = bias
        if bias:
            self.bias = new_weight((outputs,), kind, "zeros", name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()
        self.adapter: Optional[nn.Cell] = None
        """What LoRA adds to the output; see lora.py."""
        self.enter: Optional[nn.Cell] = None
        self.leave: Optional[nn.Cell] = None
        """What ranks that share the layer do to its input and output; see tensor_parallel.py."""

    def construct(self, x: Tensor) -> Tensor:
        shape = x.shape
        own = x if self.enter is None else self.enter(x)
        # A plain 2-D product is the fast path on every backend: [B, T, in] -> [B·T, in].
        y = self.matmul(
            own.reshape((-1, self.inputs)).astype(self.dtype), self.weight.astype(self.dtype)
        )
        if self.has_bias:
            y = self.add_bias(y, self.bias.astype(self.dtype))
        y = y.reshape((*shape[:-1], self.outputs))  # [B·T, out] -> [B, T, out]
        if self.leave is not None:
            y = self.leave(y)
        return y if self.adapter is None else y + self.adapter(x)


class RMSNorm(nn.Cell):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last axis, computed in float32."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.size = size
        self.dtype = float_type(config.compute_dtype)
        self.weight = new_weight((size,), float_type(config.param_init_type), "ones")
        self.norm = RootMeanSquare(size, config.layernorm_epsilon)

    def construct(self, x: Tensor) -> Tensor:
        flat = x.reshape((-1, self.size)).astype(ms.float32)
        normed, _ = self.norm(flat, self.weight.astype(ms.float32))
        return normed.reshape(x.shape).astype(self.dtype)


class MLP(nn.Cell):
    """Feed-forward block with SwiGLU: ``W₂ (silu(first half of W₁x) · second half of W₁x)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ffn = config.ffn_hidden_size
        self.dense_h_to_4h = Linear(config.hidden_size, 2 * self.ffn, config)
        self.gate = SwiGlu()
        self.dense_4h_to_h = Linear(self.ffn, config.hidden_size, config)

    def construct(self, x: Tensor) -> Tensor:
        inner, _ = self.gate(self.dense_h_to_4h(x))  # [B, T, 2F] -> [B, T, F]
        return self.dense_4h_to_h(inner)


def rotary_table(positions: int, kv_channels: int) -> Tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary embedding, each [positions, D/4], float32.

    Only the first half of a head's channels turns, so the frequencies are spaced over D/2
    (RotaryEmbedding of ChatGLM2's reference code).
    """
    turned = kv_channels // 2
    frequency = 1.0 / ROTARY_BASE ** (np.arange(0, turned, 2, dtype=np.float64) / turned)
    angle = np.outer(np.arange(positions, dtype=np.float64), frequency)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def whole_turns(cos: np.ndarray, sin: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Tables [positions, D] that turn a whole head as ``x · cos + x[swap] · sin``.

    ``swap`` exchanges the two of each pair (see ``swapped_pairs``). The second half of the
    head, which does not turn, has cosine 1 and sine 0. From the tables of ``rotary_table``.
    """
    signed = np.stack((-sin, sin), -1).reshape(len(sin), -1)  # [P, D/4, 2] -> [P, D/2]
    return (
        np.concatenate((np.repeat(cos, 2, -1), np.ones_like(signed)), -1),
        np.concatenate((signed, np.zeros_like(signed)), -1),
    )


def swapped_pairs(kv_channels: int) -> np.ndarray:
    """Channels of a head with the two of each pair exchanged: 1, 0, 3, 2, …; int32 [D]."""
    return np.arange(kv_channels, dtype=np.int32).reshape(-1, 2)[:, ::-1].reshape(-1)


def swap_matrix(kv_channels: int) -> np.ndarray:
    """The matrix [D, D] whose product ``x · matrix`` is ``x[swap]``, exactly."""
    return np.eye(kv_channels, dtype=np.float32)[:, swapped_pairs(kv_channels)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs (2i, 2i+1) of the first half of each head.

    ``x`` [B, T, heads, D]; ``cos`` and ``sin`` [B or 1, T, 1, D/4]. The second half passes.
    """
    batch, length, heads, channels = x.shape
    half = channels // 2
    pairs = x[..., :half].reshape((batch, length, heads, half // 2, 2))  # [..., D/4, 2]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = ops.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    turned = turned.reshape((batch, length, heads, half))  # [..., D/4, 2] -> [..., D/2]
    return ops.concat((turned, x[..., half:]), -1)


def float_type(name: str) -> ms.Type:
    """MindSpore's type for ``float32``, ``float16`` or ``bfloat16``."""
    return {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[name]


def new_weight(
    shape: tuple, kind: ms.Type, init: str | Initializer, name: str = "weight"
) -> Parameter:
    """A trainable parameter; its full name comes from the cells around it."""
    return Parameter(initializer(init, shape, kind), name=name)
