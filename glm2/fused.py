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
from mindspore.ops.auto_generate import LogSoftmaxGrad, RsqrtGrad, SigmoidGrad

FEW_ROWS = 4
"""Of so many rows, as while decoding, starting a kernel takes longer than its work."""


class RowSums(nn.Cell):
    """Sums over the last axis, which stays with length 1: float32 [N, size] -> [N, 1].

    On CPU as a product with ones: MindSpore's ReduceSum takes ten times as long there. Other
    devices may shorten the numbers of a product.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.as_product = ms.get_context("device_target") == "CPU"
        self.size = size
        self.ones = Tensor(np.ones(size, np.float32))
        self.share = Tensor(np.full(size, 1.0 / size, np.float32))
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        return self.weighted(x, self.ones) if self.as_product else x.sum(-1, keepdims=True)

    def mean(self, x: Tensor) -> Tensor:
        """Means in place of the sums."""
        if self.as_product:
            return self.weighted(x, self.share)
        return x.sum(-1, keepdims=True) * (1.0 / self.size)

    def weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sums of ``x · weights``, the latter [size]."""
        if self.as_product:
            return self.product(x, weights.reshape((-1, 1)))
        return (x * weights).sum(-1, keepdims=True)


class ColumnSums(nn.Cell):
    """Sums over the first axis of rows times their weights, in the same way:
    float32 [N, size] and [N, 1] -> [size]."""

    def __init__(self) -> None:
        super().__init__()
        self.as_product = ms.get_context("device_target") == "CPU"
        self.product = ops.MatMul()

    def construct(self, x: Tensor, weights: Tensor) -> Tensor:
        if not self.as_product:
            return (x * weights).sum(0)
        return self.product(weights.reshape((1, -1)), x).reshape((-1,))


class Outer(nn.Cell):
    """Every number of a column times every one of a row: [N, 1] and [size] -> [N, size].

    On CPU as a product of matrices, for what is to be multiplied with or added to a tensor of the
    result's shape: MindSpore's kernels of one shape take a quarter of the time of those that
    stretch an operand.
    """

    def __init__(self) -> None:
        super().__init__()
        self.as_product = ms.get_context("device_target") == "CPU"
        self.product = ops.MatMul()

    def construct(self, column: Tensor, row: Tensor) -> Tensor:
        row = row.reshape((1, -1))
        return self.product(column, row) if self.as_product else column * row


class AddBias(nn.Cell):
    """``x + bias``: [N, size] and [size]."""

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.BiasAdd()
        self.column_sums = ColumnSums()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor, Tensor]:
        """Gradients of both; the sum is made in float32."""
        ones = ops.ones((dout.shape[0], 1), ms.float32)
        return dout, self.column_sums(dout.astype(ms.float32), ones).astype(bias.dtype)


class RootMeanSquare(nn.Cell):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last axis of float32 ``x`` [N, size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.twice = Tensor(np.full(size, 2.0 / size, np.float32))
        self.row_sums, self.column_sums = RowSums(size), ColumnSums()
        self.outer, self.root_gradient = Outer(), RsqrtGrad()
        self.on_cpu = ms.get_context("device_target") == "CPU"
        self.signs = Tensor(np.array([[1.0], [-1.0]], np.float32))
        self.zeros = Tensor(np.zeros(size, np.float32))
        self.layer_norm, self.cut = ops.LayerNorm(1, 2, eps), ops.Slice()

    def construct(self, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """The result, and the factor [N, 1] that the rows were multiplied by."""
        if self.on_cpu and x.shape[0] <= FEW_ROWS:
            # In three kernels: a row beside its opposite has the mean 0 and the variance mean(x²),
            # so that a layer norm over both is this norm.
            rows = x.shape[0]
            pairs = x.reshape((rows, 1, self.size)) * self.signs  # [N, 2, size]
            normed, _, variance = self.layer_norm(pairs, weight, self.zeros)
            first = self.cut(normed, (0, 0, 0), (rows, 1, self.size))
            return first.reshape(x.shape), ops.rsqrt(variance.reshape((rows, 1)) + self.eps)
        factor = ops.rsqrt(self.row_sums.mean(x * x) + self.eps)
        return x * self.outer(factor, weight), factor

    def bprop(
        self, x: Tensor, weight: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Gradients of both; nothing but the result is used further on."""
        factor, dy = out[1], dout[0]
        product = dy * x
        # The gradient of the mean of squares: -factor³ / 2 times that of the factor.
        common = self.root_gradient(factor, self.row_sums.weighted(product, weight))
        dx = dy * self.outer(factor, weight) + x * self.outer(common, self.twice)
        return dx, self.column_sums(product, factor)


class SwiGlu(nn.Cell):
    """``silu(first half) · second half`` of the last axis: [.., 2F] -> [.., F]."""

    def __init__(self) -> None:
        super().__init__()
        self.split = ops.Split(-1, 2)
        self.sigmoid_gradient = SigmoidGrad()

    def construct(self, both: Tensor) -> Tuple[Tensor, Tensor]:
        """The result, and the sigmoid of the first half."""
        gate, up = self.split(both)
        sigmoid = ops.sigmoid(gate)
        return gate * sigmoid * up, sigmoid

    def bprop(
        self, both: Tensor, out: Tuple[Tensor, Tensor], dout: Tuple[Tensor, Tensor]
    ) -> Tuple[Tensor]:
        """Gradient of ``both``; nothing but the result is used further on."""
        gate, up = self.split(both)
        sigmoid, dresult = out[1], dout[0]
        slope = sigmoid + self.sigmoid_gradient(sigmoid, gate)  # of silu: s + gate · s · (1 - s)
        return (ops.concat((dresult * up * slope, dresult * (gate * sigmoid)), -1),)


class Mix(nn.Cell):
    """Softmax of the scores, in float32, and the mix of the values by it.

    ``scale`` multiplies the scores in float32.
    """

    def __init__(self, heads: int, groups: int, channels: int, scale: float) -> None:
        super().__init__()
        self.heads, self.groups, self.channels = heads, groups, channels
        self.scale = scale
        self.row_sums, self.outer = RowSums(channels), Outer()
        self.add_to_rows = ops.BiasAdd()
        self.plain = ops.BatchMatMul()
        self.second_turned = ops.BatchMatMul(transpose_b=True)
        self.first_turned = ops.BatchMatMul(transpose_a=True)

    def construct(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """``query`` [B·G, (N/G)·T, D], ``key`` and ``value`` [B·G, S, D]; ``mask`` is added to the
        scores [B, G, N/G, T, S]: [T, S], or one that stretches to their shape. Gives the mix
        [B·G, (N/G)·T, D] and the weights of it.
        """
        pages, rows, _ = query.shape
        length = rows // (self.heads // self.groups)
        scores = self.second_turned(query, key).astype(ms.float32)
        if self.scale != 1.0:
            scores = scores * self.scale
        if mask.ndim == 2:  # as a bias of long rows, which is added faster than it is stretched
            scores = self.add_to_rows(scores.reshape((-1, mask.size)), mask.reshape((-1,)))
        else:
            shape = (pages // self.groups, self.groups, -1, length, key.shape[1])
            scores = scores.reshape(shape) + mask
        scores = scores.reshape((pages, rows, key.shape[1]))
        weights = ops.softmax(scores, -1).astype(query.dtype)
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
        common = self.row_sums(common.reshape((-1, self.channels)))
        ones = ops.ones((weights.shape[2],), ms.float32)
        common = self.outer(common, ones).reshape(weights.shape)
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
        self.log_softmax, self.gradient = ops.LogSoftmax(-1), LogSoftmaxGrad(-1)

    def construct(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tuple[Tensor, Tensor]:
        """``labels`` [N] int32 are rows of the vocabulary; ``counts`` [N] float32. Gives the sum
        and the logarithms of the probabilities [N, V]."""
        logs = self.log_softmax(logits)
        picked = ops.gather_elements(logs, 1, labels.reshape((-1, 1)))
        return -(picked.reshape((-1,)) * counts).sum(), logs

    def bprop(
        self,
        logits: Tensor,
        labels: Tensor,
        counts: Tensor,
        out: Tuple[Tensor, Tensor],
        dout: Tuple[Tensor, Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Gradient of the logits alone; nothing but the sum is used further on."""
        places = ops.stack((ops.arange(labels.shape[0]).astype(ms.int32), labels), 1)
        dlogs = ops.scatter_nd(places, -counts * dout[0], logits.shape)
        return self.gradient(out[1], dlogs), ops.zeros_like(labels), ops.zeros_like(counts)
