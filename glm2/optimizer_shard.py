"""What happens to gradients between the backward pass and the weights: sums over the ranks, the
global norm, and an update whose state the data-parallel ranks share.

With a shared state a rank receives its piece of the sum of each gradient (reduce-scatter),
updates that piece of the weight, and all collect the pieces (all-gather): together the bytes of
one all-reduce, with a data rank's share of the moments in memory.
"""

from __future__ import annotations

from math import prod
from typing import List, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from glm2.collectives import (
    AllGather,
    AllReduce,
    ReduceScatter,
    copies_group,
    data_group,
    model_group,
    world,
)
from glm2.division import Division
from glm2.optimizer import AdamW
from glm2.parallel import Layout
from glm2.settings import Optimizer

BUCKET_ELEMENTS = 1 << 22
"""Gradients are added up across ranks in flat pieces of at most so many numbers, or one weight."""


class Shards:
    """How the trained weights, in order, are shared."""

    def __init__(self, weights: Sequence[Parameter], division: Division, layout: Layout) -> None:
        self.names = [weight.name for weight in weights]
        self.shapes = [tuple(weight.shape) for weight in weights]
        self.division, self.layout = division, layout
        self.shared = [division.is_sharded(shape[0]) for shape in self.shapes]
        self.any_shared = any(self.shared)

    @property
    def shares(self) -> List[int]:
        """Pieces that the state of each weight is cut into."""
        return [self.layout.data_parallel if shared else 1 for shared in self.shared]

    def copied_rows(self) -> List[Tuple[int, int]]:
        """Weights with keys and values that other ranks of the model group hold too: number, and
        the first row of those."""
        if self.division.copies == 1:
            return []
        queries = self.division.config.query_size // self.layout.model_parallel
        return [
            (i, queries)
            for i, name in enumerate(self.names)
            if "query_key_value" in name and self.division.axis(name) == 0
        ]

    def holders(self, i: int) -> int:
        """Ranks that hold the same piece of gradient number ``i``, among all that share it."""
        model = 1 if self.division.axis(self.names[i]) is not None else self.layout.model_parallel
        data = self.layout.data_parallel if self.any_shared and not self.shared[i] else 1
        return model * data


class SumGradients(nn.Cell):
    """The sum of each gradient over the data-parallel ranks, sent in few large pieces.

    Where the optimizer's state is shared, this rank's rows of the sum alone.
    """

    def __init__(self, shards: Shards, least_groups: int = 1) -> None:
        super().__init__()
        layout = shards.layout
        self.alone = layout.world_size == 1
        self.shapes = tuple(shards.shapes)
        self.copied = tuple(shards.copied_rows())
        if self.copied:
            self.add_up_copies = AllReduce(copies_group(layout, shards.division.copies))
        self.ranks = layout.data_parallel
        self.add_up = AllReduce(data_group(layout))
        self.scatter = ReduceScatter(data_group(layout))
        limit = bucket_limit(shards.shapes, least_groups)
        plain = [i for i, shared in enumerate(shards.shared) if not shared]
        split = [i for i, shared in enumerate(shards.shared) if shared]
        self.plain = _bucketed(plain, shards.shapes, limit)
        self.split = _bucketed(split, shards.shapes, limit)
        order = [i for bucket in (*self.plain, *self.split) for i in bucket]
        self.place = tuple(order.index(i) for i in range(len(order)))

    def construct(self, gradients: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        if self.alone:
            return gradients
        gradients = self.with_copies(gradients)
        found = ()
        for bucket in self.plain:
            flat = ()
            for i in bucket:
                flat = (*flat, _sent(gradients[i]).reshape((-1,)))
            total = self.add_up(ops.concat(flat))
            offset = 0
            for i in bucket:
                size = gradients[i].size
                found = (*found, total[offset : offset + size].reshape(self.shapes[i]))
                offset += size
        for bucket in self.split:
            flat = ()
            for i in bucket:
                flat = (*flat, _sent(gradients[i]).reshape((self.ranks, -1)))
            own = self.scatter(ops.concat(flat, 1)).reshape((-1,))
            offset = 0
            for i in bucket:
                size = gradients[i].size // self.ranks
                shape = (self.shapes[i][0] // self.ranks, *self.shapes[i][1:])
                found = (*found, own[offset : offset + size].reshape(shape))
                offset += size
        result = ()
        for place in self.place:
            result = (*result, found[place])
        return result

    def with_copies(self, gradients: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """Keys and values that several ranks hold have the gradients of all their heads."""
        if not self.copied:
            return gradients
        flat = ()
        for i, first in self.copied:
            flat = (*flat, gradients[i][first:].reshape((-1,)))
        total = self.add_up_copies(ops.concat(flat))
        offset = 0
        for i, first in self.copied:
            rows = gradients[i][first:]
            rows = total[offset : offset + rows.size].reshape(rows.shape)
            offset += rows.size
            whole = ops.concat((gradients[i][:first], rows))
            gradients = (*gradients[:i], whole, *gradients[i + 1 :])
        return gradients


class SumOfSquares(nn.Cell):
    """The squared global norm of gradients that ranks share, each number counted once."""

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        layout = shards.layout
        # Without shared state, the data-parallel ranks have the same gradients.
        self.add_up = AllReduce(world(layout) if shards.any_shared else model_group(layout))
        self.half_square = ops.L2Loss()
        weights = [2.0 / shards.holders(i) for i in range(len(shards.names))]
        self.weights = Tensor(np.array(weights, np.float32))
        copied = dict(shards.copied_rows())
        self.roots = tuple(
            _root_weights(shards, i, copied[i]) if i in copied else None
            for i in range(len(shards.names))
        )

    def construct(self, gradients: Tuple[Tensor, ...]) -> Tensor:
        halves = ()
        for i in range(len(gradients)):
            gradient = gradients[i].astype(ms.float32)
            if self.roots[i] is not None:
                gradient = gradient * self.roots[i]
            halves = (*halves, self.half_square(gradient))
        squares = (ops.stack(halves) * self.weights).sum()
        return self.add_up(squares.reshape((1,)))[0]


class SharedAdamW(AdamW):
    """AdamW whose state the data-parallel ranks share."""

    def __init__(self, weights: Sequence[Parameter], settings: Optimizer, shards: Shards) -> None:
        super().__init__(weights, settings, shards.shares)
        self.ranks, self.rank = shards.layout.data_parallel, shards.layout.data_rank
        self.gather = AllGather(data_group(shards.layout))
        split = [i for i, shared in enumerate(shards.shared) if shared]
        self.split = _bucketed(split, shards.shapes, BUCKET_ELEMENTS)

    def construct(self, gradients: Tuple[Tensor, ...], lr: Tensor, updates: Tensor) -> bool:
        """``gradients`` are this rank's pieces where the state is shared."""
        correct = self.corrections(updates)
        for i in range(len(gradients)):
            if self.shares[i] == 1:
                self.update(i, gradients[i], lr, correct)
        for bucket in self.split:
            pieces = ()
            for i in bucket:
                rows = gradients[i].shape[0]
                own = self.weights[i][self.rank * rows : (self.rank + 1) * rows]
                moved = self.moved(i, own, gradients[i], lr, correct)
                pieces = (*pieces, moved.reshape((1, -1)))
            whole = self.gather(ops.concat(pieces, 1))  # [ranks, numbers of a piece]
            offset = 0
            for i in bucket:
                size = gradients[i].size
                new = whole[:, offset : offset + size].reshape(self.weights[i].shape)
                ops.assign(self.weights[i], new)
                offset += size
        return True


def buckets(sizes: Sequence[int], limit: int = BUCKET_ELEMENTS) -> List[Tuple[int, int]]:
    """Half-open ranges of neighbours whose sizes add up to at most ``limit``, or single ones.

    >>> buckets([2, 2, 2, 9, 1], limit=5)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ranges: List[Tuple[int, int]] = []
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            ranges.append((first, i))
            first, total = i, 0
        total += size
    if sizes:
        ranges.append((first, len(sizes)))
    return ranges


def bucket_limit(shapes: Sequence[Tuple[int, ...]], least_groups: int) -> int:
    """Numbers in a piece, so that there are about so many groups or more."""
    return min(BUCKET_ELEMENTS, -(-sum(map(prod, shapes)) // least_groups))


def _bucketed(
    numbers: Sequence[int], shapes: Sequence[Tuple[int, ...]], limit: int
) -> Tuple[Tuple[int, ...], ...]:
    """The numbers of weights, grouped into buckets."""
    ranges = buckets([prod(shapes[i]) for i in numbers], limit)
    return tuple(tuple(numbers[first:last]) for first, last in ranges)


def _sent(gradient: Tensor) -> Tensor:
    """In the type that it travels in: its own, but for bfloat16, in which sums lose too much."""
    return gradient.astype(ms.float32) if gradient.dtype == ms.bfloat16 else gradient


def _root_weights(shards: Shards, i: int, first: int) -> Tensor:
    """Roots of the weights of the rows of a gradient whose rows from ``first`` on are copied."""
    rows = np.ones(shards.shapes[i][0], np.float32)
    rows[first:] = 1.0 / np.sqrt(shards.division.copies)
    if shards.shared[i]:
        rows = np.split(rows, shards.layout.data_parallel)[shards.layout.data_rank]
    return Tensor(rows.reshape((-1,) + (1,) * (len(shards.shapes[i]) - 1)))
