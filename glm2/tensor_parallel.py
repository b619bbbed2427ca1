"""Model parallelism as Megatron does it: ranks share every layer, and sum what leaves it.

The first projection of attention and of the feed-forward block is divided by outputs, so that a
rank has whole heads and channels; the second by inputs, so that one sum ends each block. The
output layer is divided by the vocabulary, and the loss is computed on the parts of the logits.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from glm2.adapters import is_adapter
from glm2.collectives import AllGather, AllReduce, Enter, Group, Leave, model_group
from glm2.division import Division, divided_axis, rank_config
from glm2.fused import RowSums
from glm2.layers import Linear
from glm2.lora import add_adapters
from glm2.model import Glm2
from glm2.parallel import Layout


def divided(whole: Glm2, division: Division, layout: Layout) -> Glm2:
    """This rank's part of a network, with its part of the same weights.

    Because the network was made or read whole, ranks begin with the same weights in whatever
    layout. Each host process holds it whole for that time.
    """
    model = Glm2(rank_config(whole.config, layout.model_parallel))
    if any(is_adapter(p.name) for p in whole.get_parameters()):
        add_adapters(model)
    group = model_group(layout)
    for name, cell in model.cells_and_names():
        if isinstance(cell, Linear):
            _join(cell, divided_axis(f"{name}.weight", vocab_emb_dp=False), group, layout)
    transformer = model.transformer
    if not division.vocab_emb_dp:
        rows = model.config.padded_vocab_size
        transformer.embedding.shared = SharedTable(rows, group)
    transformer.gather_logits = GatherLogits(group)
    model.cross_entropy = SharedCrossEntropy(model.config.padded_vocab_size, group)
    values = {p.name: p for p in whole.get_parameters()}
    for parameter in model.get_parameters():
        cut = division.in_memory(parameter.name, layout.rank)
        value = values[parameter.name]
        # Through float32, which holds every float16 and bfloat16 exactly: numpy has no bfloat16.
        own = Tensor(cut.of(value.astype(ms.float32).asnumpy())).astype(value.dtype)
        parameter.set_data(own, slice_shape=True)
    return model


def _join(linear: Linear, axis: int, group: Group, layout: Layout) -> None:
    """Let the ranks share a linear layer that is divided by outputs (0) or by inputs (1)."""
    enter, leave = Enter(group), Leave(group)
    if axis == 0:
        linear.enter = enter
    else:
        linear.leave = leave
    if linear.adapter is not None:
        # The hidden part of an adapter is small. With it whole on all ranks, so are the gradients
        # of the half of the adapter that they all hold.
        linear.adapter.between = enter if axis == 0 else leave
        if axis == 1:
            linear.adapter.dropout.first_column = layout.model_rank * linear.inputs


class SharedTable(nn.Cell):
    """Rows of an embedding that ranks share: each looks up its own, and the sum has them all."""

    def __init__(self, rows: int, group: Group) -> None:
        super().__init__()
        self.first, self.rows = group.place * rows, rows
        self.leave = Leave(group)

    def construct(self, table: Tensor, ids: Tensor) -> Tensor:
        """``table`` [V/n, H] of this rank; ``ids`` [B, T] of the whole vocabulary."""
        own = ids - self.first
        here = ops.logical_and(own >= 0, own < self.rows)
        found = ops.gather(table, ops.minimum(ops.maximum(own, 0), self.rows - 1), 0)
        return self.leave(found * ops.expand_dims(here, -1).astype(found.dtype))


class GatherLogits(nn.Cell):
    """Logits of the whole vocabulary, for generation: [N, V/n] -> [N, V]."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.gather = AllGather(group)

    def construct(self, logits: Tensor) -> Tensor:
        shape = logits.shape
        turned = logits.reshape((-1, shape[-1])).transpose(1, 0)
        whole = self.gather(turned).transpose(1, 0)
        return whole.reshape((*shape[:-1], -1))


class SharedCrossEntropy(nn.Cell):
    """As ``fused.CrossEntropy``, of logits that ranks share by the vocabulary: three numbers a
    row are sent instead of its logits."""

    def __init__(self, vocabulary: int, group: Group) -> None:
        super().__init__()
        self.numbers = Tensor(
            np.arange(group.place * vocabulary, (group.place + 1) * vocabulary, dtype=np.int32)
        )
        self.first, self.vocabulary = group.place * vocabulary, vocabulary
        # There is no maximum over ranks on CPU.
        self.gather, self.add_up = AllGather(group), AllReduce(group)
        self.row_sums = RowSums(vocabulary)

    def construct(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tuple[Tensor, Tensor]:
        """``logits`` [N, V/n] float32 of this rank; ``labels`` [N] of the whole vocabulary. Gives
        the sum, and the logarithm [N, 1] of what the softmax of each row is divided by."""
        highest = ops.amax(self.gather(ops.expand_dims(ops.amax(logits, -1), 0)), 0)  # [N]
        shifted = logits - highest.reshape((-1, 1))
        own = labels - self.first
        here = ops.logical_and(own >= 0, own < self.vocabulary).astype(ms.float32)
        own = ops.minimum(ops.maximum(own, 0), self.vocabulary - 1)
        picked = ops.gather_elements(shifted, 1, own.reshape((-1, 1))).reshape((-1,)) * here
        both = self.add_up(ops.stack((self.row_sums(ops.exp(shifted)).reshape((-1,)), picked)))
        log_sum = ops.log(both[0])
        loss = ((log_sum - both[1]) * counts).sum()
        return loss, (log_sum + highest).reshape((-1, 1))

    def bprop(
        self,
        logits: Tensor,
        labels: Tensor,
        counts: Tensor,
        out: Tuple[Tensor, Tensor],
        dout: Tuple[Tensor, Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Gradient of this rank's logits: softmax minus one-hot, without a word to the others."""
        own = (self.numbers.reshape((1, -1)) == labels.reshape((-1, 1))).astype(ms.float32)
        rows = (counts * dout[0]).reshape((-1, 1))
        gradient = (ops.exp(logits - out[1]) - own) * rows
        return gradient, ops.zeros_like(labels), ops.zeros_like(counts)
