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
        self.batch, self.groups, self.channels = batch, config.groups, config.kv_channels
        self.columns = Tensor(np.arange(config.seq_length, dtype=np.int32))
        # Where each page (a row's group) begins in a cache of [B·G·S, D]: [B, G].
        pages = np.arange(batch * config.groups, dtype=np.int32) * config.seq_length
        self.pages = Tensor(pages.reshape(batch, config.groups))

    def construct(self, token: Tensor, position: Tensor, *caches: Tensor) -> Tuple[Tensor, ...]:
        """From ``token`` [B], the column ``position`` [B] that each takes, and the caches.

        Gives the logits [B, V] behind the tokens, float32, and the caches with them.
        """
        net = self.net
        cos = ops.gather(net.cos, position, 0).reshape((self.batch, 1, 1, -1))
        sin = ops.gather(net.sin, position, 0).reshape((self.batch, 1, 1, -1))
        hidden = self.columns.reshape((1, -1)) > position.reshape((-1, 1))  # [B, S]
        hidden = hidden.reshape((self.batch, 1, 1, 1, -1))
        rows = (self.pages + position.reshape((-1, 1))).reshape((-1, 1))  # [B·G, 1]
        x = net.embedding(token.reshape((-1, 1)))
        grown = ()
        for i in range(len(net.encoder.layers)):
            layer = net.encoder.layers[i]
            attention = layer.self_attention
            query, key, value = attention.project(layer.input_layernorm(x), cos, sin)
            keys = self.write(caches[2 * i], rows, key)
            values = self.write(caches[2 * i + 1], rows, value)
            x = x + attention.attend(query, keys, values, hidden)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            grown = (*grown, keys, values)
        return (_logits(net, x.reshape((self.batch, -1))), *grown)

    def write(self, cache: Tensor, rows: Tensor, new: Tensor) -> Tensor:
        """The cache [B·G, S, D] with one new row [B·G, 1, D] in each page."""
        flat = cache.reshape((-1, self.channels))
        flat = ops.tensor_scatter_update(flat, rows, new.reshape((-1, self.channels)))
        return flat.reshape((self.batch * self.groups, -1, self.channels))


def _logits(net: nn.Cell, x: Tensor) -> Tensor:
    """Logits [B, V] of the hidden states [B, H] behind the last layer."""
    if net.encoder.has_final_norm:
        x = net.encoder.final_layernorm(x)
    return net.output_layer(x).astype(ms.float32)
