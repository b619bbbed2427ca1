"""Causal self-attention with grouped queries, with and without a key/value cache.

Shapes: B rows, T tokens a row, S tokens attended to, N query heads, G key/value groups,
D channels of a head.
"""

from __future__ import annotations

import math
from typing import Tuple

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from glm2.config import ModelConfig
from glm2.fused import Mix
from glm2.layers import Linear, float_type, rotate, swap_matrix, swapped_pairs

# What a masked score becomes. Finite, so that a row with nothing to attend to (left padding)
# gives a uniform softmax and not NaN.
MASKED = -1e30


class SelfAttention(nn.Cell):
    """The attention of layer number ``layer`` (from 1)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.groups = config.num_attention_heads, config.groups
        self.channels = config.kv_channels
        self.query_size, self.kv_size = config.query_size, config.kv_size
        self.dtype = float_type(config.compute_dtype)
        # Scores are divided by the layer number where float16 could overflow and multiplied
        # back in float32: the same result in exact arithmetic. float32 does not need it.
        scaled = config.apply_query_key_layer_scaling and config.compute_dtype != "float32"
        self.layer_scale = float(layer) if scaled else 1.0
        self.query_scale = 1.0 / (math.sqrt(self.channels) * self.layer_scale)
        self.query_key_value = Linear(
            config.hidden_size,
            self.query_size + 2 * self.kv_size,
            config,
            bias=config.add_qkv_bias,
        )
        self.dense = Linear(self.query_size, config.hidden_size, config)
        self.swap = Tensor(swapped_pairs(self.channels))
        self.swapping = Tensor(swap_matrix(self.channels)).astype(self.dtype)
        self.split, self.cut = SplitWithSize(), ops.Slice()
        self.product = ops.MatMul()
        self.mixed = Mix(self.heads, self.groups, self.channels, self.layer_scale)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def construct(self, x: Tensor, turn: Tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Attend among the T tokens of ``x`` [B, T, H].

        The arithmetic of ``project`` and ``attend`` in the form that has the cheapest gradients:
        nothing is cut out of a larger tensor but in one piece. ``turn`` are tables
        [B, T, N + 2G, D] that turn and scale queries, turn keys and leave values as they are;
        ``mask`` [.., T, T] is added to the scores.
        """
        batch, length, _ = x.shape
        fused = self.query_key_value(x)  # [B, T, (N + 2G)·D]: queries | keys | values
        swapped = self.product(fused.reshape((-1, self.channels)), self.swapping)
        shape = (batch, length, -1, self.channels)
        heads = fused.reshape(shape) * turn[0] + swapped.reshape(shape) * turn[1]
        sizes = (self.query_size, self.kv_size, self.kv_size)
        query, key, value = self.split(heads.reshape(fused.shape), sizes, -1)
        if self.layer_scale != 1.0:
            query = query / self.layer_scale
        mixed, _ = self.mixed(self.pages(query), self.pages(key), self.pages(value), mask)
        # [B·G, (N/G)·T, D] -> [B, N, T, D] -> [B, T, N·D]
        mixed = mixed.reshape((batch, self.heads, length, self.channels)).transpose(0, 2, 1, 3)
        return self.dense(mixed.reshape((batch, length, self.query_size)))

    def pages(self, x: Tensor) -> Tensor:
        """Heads side by side as one below the other in their group: [B, T, n·D] -> [B·G, .., D]."""
        batch, length, _ = x.shape
        x = x.reshape((batch, length, -1, self.channels)).transpose(0, 2, 1, 3)
        return x.reshape((batch * self.groups, -1, self.channels))

    def extend(
        self,
        x: Tensor,
        turn: Tuple[Tensor, Tensor],
        mask: Tensor,
        places: Tensor,
        keys: Parameter,
        values: Parameter,
    ) -> Tensor:
        """Write the T new tokens ``x`` [B·T, H] into the cache and attend to all of it.

        The arithmetic of ``construct`` with few kernels: with one new token, starting a kernel
        takes longer than its work, even where nothing but a shape changes. ``turn`` are tables
        [B, T, N + 2G, D] that turn and scale queries, turn keys and leave values as they are;
        ``mask`` is added to the scores: [B·G or 1, 1, S] of one new token, [B, 1, 1, T, S] of
        several; the rows ``places`` [B, T, G] of ``keys`` and ``values`` [B·G·S, D], which are S
        rows for each group of a row, are updated in place.
        """
        batch, length = places.shape[:2]
        fused = self.query_key_value(x)  # [B·T, (N + 2G)·D]: queries | keys | values
        heads = fused.reshape((batch, length, -1, self.channels))
        heads = ops.addcmul(heads * turn[0], ops.gather(heads, self.swap, 3), turn[1])
        query = self.cut(heads, (0, 0, 0, 0), (batch, length, self.heads, self.channels))
        own = (batch, length, self.groups, self.channels)
        key = self.cut(heads, (0, 0, self.heads, 0), own)
        value = self.cut(heads, (0, 0, self.heads + self.groups, 0), own)
        pages = (batch * self.groups, -1, self.channels)
        key = ops.scatter_update(keys, places, key).reshape(pages)
        value = ops.scatter_update(values, places, value).reshape(pages)
        if length > 1:
            query = query.transpose(0, 2, 1, 3)  # [B, T, N, D] -> [B, N, T, D]
        query = query.reshape(pages)
        if self.layer_scale != 1.0:
            query = query / self.layer_scale
        scores = self.scores(query, key).astype(ms.float32)  # [B·G, (N/G)·T, S]
        if self.layer_scale != 1.0:
            scores = scores * self.layer_scale
        if length == 1:
            weights = ops.softmax(scores + mask, -1)
        else:  # the mask is per row and token: [B, G, N/G, T, S]
            by_row = scores.reshape((batch, self.groups, -1, length, key.shape[1]))
            weights = ops.softmax(by_row + mask, -1).reshape(scores.shape)
        mixed = self.mix(weights.astype(self.dtype), value)
        if length > 1:  # [B·G, (N/G)·T, D] -> [B, N, T, D] -> [B, T, N, D]
            mixed = mixed.reshape((batch, self.heads, length, self.channels)).transpose(0, 2, 1, 3)
        return self.dense(mixed.reshape((batch * length, self.query_size)))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries [B·G, (N/G)·T, D], keys and values [B·G, T, D], the first two turned.

        The heads of one group stand one below the other, so that a group's keys are used in
        place instead of being copied for each head.
        """
        batch, length, _ = x.shape
        fused = self.query_key_value(x)  # [B, T, (N + 2G)·D]: queries | keys | values
        end_k = self.query_size + self.kv_size
        query = fused[..., : self.query_size].reshape((batch, length, self.heads, self.channels))
        key = fused[..., self.query_size : end_k].reshape(
            (batch, length, self.groups, self.channels)
        )
        value = fused[..., end_k:].reshape((batch, length, self.groups, self.channels))
        query = rotate(query, cos, sin) * self.query_scale
        key = rotate(key, cos, sin)
        # [B, T, N, D] -> [B, N, T, D] -> [B·G, (N/G)·T, D]
        query = query.transpose(0, 2, 1, 3).reshape((batch * self.groups, -1, self.channels))
        # [B, T, G, D] -> [B, G, T, D] -> [B·G, T, D]
        key = key.transpose(0, 2, 1, 3).reshape((batch * self.groups, length, self.channels))
        value = value.transpose(0, 2, 1, 3).reshape((batch * self.groups, length, self.channels))
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
        """Softmax in float32 over the S keys, the mix of values, and the output projection."""
        pages, rows, _ = query.shape
        length = rows // (self.heads // self.groups)
        batch = pages // self.groups
        scores = self.scores(query, key).astype(ms.float32) * self.layer_scale
        # [B·G, (N/G)·T, S] -> [B, G, N/G, T, S], as the mask is per row and token
        scores = scores.reshape((batch, self.groups, -1, length, key.shape[1]))
        weights = ops.softmax(ops.masked_fill(scores, hidden, MASKED), -1).astype(self.dtype)
        mixed = self.mix(weights.reshape((pages, rows, key.shape[1])), value)
        # [B·G, (N/G)·T, D] -> [B, N, T, D] -> [B, T, N·D]
        mixed = mixed.reshape((batch, self.heads, length, self.channels)).transpose(0, 2, 1, 3)
        return self.dense(mixed.reshape((batch, length, self.query_size)))
