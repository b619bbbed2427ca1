"""Parts of the network whose gradients are written out: fewer kernels and passes over memory than
the ones that follow from the rules of each operator. None of them has weights.

Shapes: N rows of anything, or query heads; B rows of a batch, T tokens a row, S tokens attended
to, G key/value groups, D channels of a head, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize


class RowSums(nn.Cell):
    """Sums over the last axis, which stays with length 1: float32 [N, size] -> [N, 1].

    On CPU as a product with ones: MindSpore's ReduceSum takes ten times as long there. Other
    devices may shorten the numbers of a product.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.as_product = ms.get_context("device_target") == "CPU"
        self.ones = Tensor(np.ones((size, 1), np.float32))
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        return self.product(x, self.ones) if self.as_product else x.sum(-1, keepdims=True)


class ColumnSums(nn.Cell):
    """Sums over the first axis, in the same way: float32 [N, size] -> [size]."""

    def __init__(self) -> None:
        super().__init__()
        self.as_product = ms.get_context("device_target") == "CPU"
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        if not self.as_product:
            return x.sum(0)
        return self.product(ops.ones((1, x.shape[0]), ms.float32), x).reshape((-1,))


class AddBias(nn.Cell):
    """``x + bias``: [N, size] and [size]."""

    def __init__(self) -> None:
        super().__init__()
        self.column_sums = ColumnSums()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """Gradients of both; the sum is made in float32."""
        return dout, self.column_sums(dout.astype(ms.float32)).astype(bias.dtype)


class RootMeanSquare(nn.Cell):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last axis of float32 ``x`` [N, size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.row_sums, self.column_sums = RowSums(size), ColumnSums()

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """The result, and the factor [N, 1] that the rows were multiplied by."""
        factor = ops.rsqrt(self.row_sums(x * x) * (1.0 / self.size) + self.eps)
        return x * factor * weight, factor

    def bprop(
        self, x: Tensor, weight: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Gradients of both; nothing but the result is used further on."""
        factor, dy = out[1], dout[0]
        normed = x * factor
        product = dy * normed
        common = self.row_sums(product * weight) * (1.0 / self.size)
        return (dy * weight - normed * common) * factor, self.column_sums(product)


class SwiGlu(nn.Cell):
    """``silu(first half) · second half`` of the last axis: [.., 2F] -> [.., F]."""

    def __init__(self, ffn: int) -> None:
        super().__init__()
        self.sizes = (ffn, ffn)
        self.split = SplitWithSize()

    def construct(self, both: Tensor) -> Tuple[Tensor, Tensor]:
        """The result, and the sigmoid of the first half."""
        gate, up = self.split(both, self.sizes, -1)
        sigmoid = ops.sigmoid(gate)
        return gate * sigmoid * up, sigmoid

    def bprop(
        self, both: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor]:
        """Gradient of ``both``; nothing but the result is used further on."""
        gate, up = self.split(both, self.sizes, -1)
        sigmoid, dresult = out[1], dout[0]
        silu = gate * sigmoid
        dgate = dresult * up * (sigmoid + silu - silu * sigmoid)
        return (ops.concat((dgate, dresult * silu), -1),)


class Mix(nn.Cell):
    """Softmax of the scores, in float32, and the mix of the values by it.

    ``scale`` multiplies the scores in float32.
    """

    def __init__(self, heads: int, groups: int, channels: int, scale: float) -> None:
        super().__init__()
        self.heads, self.groups, self.channels = heads, groups, channels
        self.scale = scale
        self.row_sums = RowSums(channels)
        self.plain = ops.BatchMatMul()
        self.second_turned = ops.BatchMatMul(transpose_b=True)
        self.first_turned = ops.BatchMatMul(transpose_a=True)

    def construct(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """``query`` [B·G, (N/G)·T, D], ``key`` and ``value`` [B·G, S, D]; ``mask`` is added to the
        scores [B, G, N/G, T, S]. Gives the mix [B·G, (N/G)·T, D] and the weights of it.
        """
        pages, rows, _ = query.shape
        length = rows // (self.heads // self.groups)
        scores = self.second_turned(query, key).astype(ms.float32)
        if self.scale != 1.0:
            scores = scores * self.scale
        scores = scores.reshape((pages // self.groups, self.groups, -1, length, key.shape[1]))
        weights = ops.softmax(scores + mask, -1).astype(query.dtype)
        weights = weights.reshape((pages, rows, key.shape[1]))
        return self.plain(weights, value), weights

    def bprop(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        out: Tuple[Tensor, Tensor],
        dout: Tuple[Tensor, Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the inputs; nothing but the mix is used further on."""
        mixed, weights = out
        dmixed = dout[0]
        dvalue = self.first_turned(weights, dmixed)
        dweights = self.second_turned(dmixed, value).astype(ms.float32)
        # What the softmax's gradient subtracts, sum(weights · dweights), is also sum(mix · dmix):
        # a sum over D numbers instead of S.
        common = dmixed.astype(ms.float32) * mixed.astype(ms.float32)
        common = self.row_sums(common.reshape((-1, self.channels))).reshape((*mixed.shape[:2], 1))
        dscores = weights.astype(ms.float32) * (dweights - common)
        if self.scale != 1.0:
            dscores = dscores * self.scale
        dscores = dscores.astype(query.dtype)
        dquery, dkey = self.plain(dscores, key), self.first_turned(dscores, query)
        return dquery, dkey, dvalue, ops.zeros_like(mask)


class CrossEntropy(nn.Cell):
    """Sum over rows of ``counts`` times the cross entropy of float32 ``logits`` [N, V]."""

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(-1)
        # Of the mean over the rows.
        self.gradient = ops.SparseSoftmaxCrossEntropyWithLogits(is_grad=True)

    def construct(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """``labels`` [N] int32 are rows of the vocabulary; ``counts`` [N] float32."""
        picked = ops.gather_elements(self.log_softmax(logits), 1, labels.reshape((-1, 1)))
        return -(picked.reshape((-1,)) * counts).sum()

    def bprop(
        self, logits: Tensor, labels: Tensor, counts: Tensor, out: Tensor, dout: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Gradient of the logits alone."""
        rows = (counts * (dout * logits.shape[0])).reshape((-1, 1))
        return self.gradient(logits, labels) * rows, ops.zeros_like(labels), ops.zeros_like(counts)
