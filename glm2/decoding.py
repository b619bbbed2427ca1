"""The forward passes of generation: static shapes, so that each graph is compiled once.

Shapes: B rows, T new tokens a row, S columns of the cache, V vocabulary, G key/value groups,
D channels of a head. Rows are padded on the left, so that all of them continue in one column.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm2.layers import float_type
from glm2.model import Glm2


class CachedForward(nn.Cell):
    """The next token after T more tokens, whose keys and values it keeps.

    The same code is prefill (T = all columns of the prompts) and decode (T = 1). What a step
    gives is what the next one takes, so that a step of greedy decoding is one call.
    """

    def __init__(self, model: Glm2, batch: int, capacity: int) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.transformer = model.transformer
        self.columns = Tensor(np.arange(capacity, dtype=np.int32))
        pages = batch * config.groups  # a page is the cache of one group of one row
        self.page_rows = Tensor(np.repeat(np.arange(batch, dtype=np.int32), config.groups))
        # The row of each place in the cache, page for page: [B, S, G].
        places = np.arange(pages * capacity, dtype=np.int32).reshape((batch, config.groups, -1))
        self.places = Tensor(np.ascontiguousarray(places.transpose(0, 2, 1)))
        shape, kind = (pages * capacity, config.kv_channels), float_type(config.compute_dtype)
        self.keys = ParameterTuple(
            [Parameter(ops.zeros(shape, kind), name=f"key_{i}") for i in range(config.num_layers)]
        )
        self.values = ParameterTuple(
            [Parameter(ops.zeros(shape, kind), name=f"value_{i}") for i in range(config.num_layers)]
        )

    def construct(
        self, ids: Tensor, start: Tensor, padding: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """``ids`` [B, T] stand in the columns from ``start`` (scalar) on; ``padding`` [B].

        Gives the most probable next token of each row [B, 1], the logits [B, V] in float32, and
        the column of the next token.
        """
        net = self.transformer
        batch, length = ids.shape
        slots = self.columns[:length] + start  # [T]
        turn, mask = net.place(slots, padding, self.columns)
        if length > 1:
            mask = mask.reshape((batch, 1, 1, length, -1))
        elif batch > 1:
            mask = ops.gather(mask, self.page_rows, 0)  # [B, 1, S] -> [B·G, 1, S]
        places = ops.gather(self.places, slots, 1)
        x = net.embedding(ids.reshape((-1,)))  # [B·T, H]
        x = net.encoder.extend(x, turn, mask, places, self.keys, self.values)
        if length > 1:
            x = x.reshape((batch, length, -1))[:, -1]
        logits = net.logits(x)
        return _best(logits), logits, start + ids.shape[1]


class WholeForward(nn.Cell):
    """The token after column ``last``, computed from all columns anew."""

    def __init__(self, model: Glm2, capacity: int) -> None:
        super().__init__(auto_prefix=False)
        self.transformer = model.transformer
        self.columns = Tensor(np.arange(capacity, dtype=np.int32))

    def construct(self, ids: Tensor, last: Tensor, padding: Tensor) -> Tuple[Tensor, Tensor]:
        """``ids`` [B, S], filled up to column ``last``; most probable token [B, 1], logits."""
        net = self.transformer
        turn, mask = net.place(self.columns, padding, self.columns)
        mask = ops.expand_dims(ops.expand_dims(mask, 1), 1)  # [B, T, S] -> [B, 1, 1, T, S]
        x = net.encoder(net.embedding(ids), turn, mask)
        logits = net.logits(ops.gather(x, last, 1))
        return _best(logits), logits


def _best(logits: Tensor) -> Tensor:
    """The most probable token of each row: [B, V] -> [B, 1]."""
    return ops.argmax(logits, -1, True).astype(ms.int32)
