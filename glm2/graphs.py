"""The two graphs of an exported model: prefill and increment, with static shapes.

Unlike the cells of generation, they keep nothing between calls: the key/value caches go in and
come out, so that any runtime of MindIR can run them, and two graphs can share one cache.

Rows stand on the left, each with its own length; what stands behind a row's end in the cache is
never seen, and is overwritten when the row grows. Shapes: B rows, S columns, V vocabulary,
G key/value groups, D channels of a head.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from glm2.model import Glm2


class Prefill(nn.Cell):
    """Reads whole prompts."""

    def __init__(self, model: Glm2, batch: int) -> None:
        super().__init__(auto_prefix=False)
        self.net = model.transformer
        self.length = model.config.seq_length
        # Where each row begins among the [B·S] tokens.
        self.begin = Tensor(np.arange(batch, dtype=np.int32) * self.length)

    def construct(self, ids: Tensor, length: Tensor) -> Tuple[Tensor, ...]:
        """From ``ids`` [B, S] and ``length`` [B], int32, both.

        Gives the logits [B, V] behind the last token of each row, float32, and for each layer
        the cache of its keys and that of its values, [B·G, S, D].
        """
        net = self.net
        cos = net.cos.reshape((1, self.length, 1, -1))  # [S, D/4] -> [1, S, 1, D/4]
        sin = net.sin.reshape((1, self.length, 1, -1))
        x = net.embedding(ids)
        caches = ()
        for layer in net.encoder.layers:
            attention = layer.self_attention
            query, key, value = attention.project(layer.input_layernorm(x), cos, sin)
            x = x + attention.attend(query, key, value, net.not_causal)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            caches = (*caches, key, value)
        # Only the last tokens go through the output layer: [B, S, H] -> [B, H].
        x = ops.gather(x.reshape((-1, x.shape[-1])), self.begin + length - 1, 0)
        return (_logits(net, x), *caches)


class Increment(nn.Cell):
    """Reads one more token of each row."""

    def __init__(self, model: Glm2, batch: int) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.net = model.transformer
        self.batch, self.groups = batch, config.groups
        self.columns = Tensor(np.arange(config.seq_length, dtype=np.int32))

    def construct(self, token: Tensor, position: Tensor, *caches: Tensor) -> Tuple[Tensor, ...]:
        """From ``token`` [B], the column ``position`` [B] that each takes, and the caches.

        Gives the logits [B, V] behind the tokens, float32, and the caches with them.
        """
        net = self.net
        cos = ops.gather(net.cos, position, 0).reshape((self.batch, 1, 1, -1))
        sin = ops.gather(net.sin, position, 0).reshape((self.batch, 1, 1, -1))
        position = position.reshape((-1, 1))
        hidden = (self.columns > position).reshape((self.batch, 1, 1, 1, -1))  # from [B, S]
        here = (self.columns == position).astype(net.dtype)  # [B, S]
        here = ops.tile(ops.expand_dims(here, 1), (1, self.groups, 1)).reshape(
            (self.batch * self.groups, -1, 1)
        )  # [B, G, S] -> [B·G, S, 1]
        x = net.embedding(token.reshape((-1, 1)))
        grown = ()
        for i in range(len(net.encoder.layers)):
            layer = net.encoder.layers[i]
            attention = layer.self_attention
            query, key, value = attention.project(layer.input_layernorm(x), cos, sin)
            # One new column in each page. Lite has no scatter on a processor; this it has.
            keys = caches[2 * i] * (1 - here) + key * here
            values = caches[2 * i + 1] * (1 - here) + value * here
            x = x + attention.attend(query, keys, values, hidden)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            grown = (*grown, keys, values)
        return (_logits(net, x.reshape((self.batch, -1))), *grown)


def _logits(net: nn.Cell, x: Tensor) -> Tensor:
    """Logits [B, V] of the hidden states [B, H] behind the last layer."""
    if net.encoder.has_final_norm:
        x = net.encoder.final_layernorm(x)
    return net.output_layer(x).astype(ms.float32)
