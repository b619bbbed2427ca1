"""Parts of the network whose gradients are written out: fewer kernels and passes over memory than
the ones that follow from the rules of each operator. None of them has weights.

Shapes: B rows, T tokens a row, N query heads, G key/value groups, D channels of a head, F
feed-forward size, V vocabulary.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import SiLUGrad, SplitWithSize


class SwiGlu(nn.Cell):
    """``silu(first half) · second half`` of the last axis: [.., 2F] -> [.., F]."""

    def __init__(self, ffn: int) -> None:
        super().__init__()
        self.ffn = ffn
        self.split = SplitWithSize()
        self.silu_gradient = SiLUGrad()

    def construct(self, both: Tensor) -> Tensor:
        gate, up = self.split(both, (self.ffn, self.ffn), -1)
        return gate * ops.sigmoid(gate) * up

    def bprop(self, both: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """Gradient of ``both``."""
        gate, up = self.split(both, (self.ffn, self.ffn), -1)
        turned = self.silu_gradient(dout * up, gate)
        return (ops.concat((turned, dout * (gate * ops.sigmoid(gate))), -1),)


class Mix(nn.Cell):
    """Softmax of the scores, in float32, and the mix of the values by it.

    ``scale`` multiplies the scores in float32.
    """

    def __init__(self, heads: int, groups: int, scale: float) -> None:
        super().__init__()
        self.heads, self.groups, self.scale = heads, groups, scale
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
        common = (dmixed.astype(ms.float32) * mixed.astype(ms.float32)).sum(-1, keepdims=True)
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
