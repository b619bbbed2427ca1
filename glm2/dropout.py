"""Dropout whose mask follows from a seed alone: a resumed run draws what an unbroken one draws.

MindSpore's own keeps the state of its generator inside the kernel, where no checkpoint finds it.
"""

from __future__ import annotations

import zlib

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class Dropout(nn.Cell):
    """In training, zeroes each number of [N, H] with probability ``p`` and divides the others by
    1 - p.

    ``place`` tells the layers of a network apart. Which numbers are zeroed is a hash of place,
    row, column and the seed that ``seed_of`` holds.
    """

    def __init__(self, p: float, place: int) -> None:
        super().__init__()
        self.p, self.place = p, place
        self.first_column = 0
        """Number of the first column, where a rank has a part of them."""
        # Numbers from here up are kept: a hash is an int32, all of them as likely.
        self.least_kept = round((p - 0.5) * 2.0**32)
        # Not as an attribute of the cell, which would make it a weight of the network.
        object.__setattr__(self, "seed", seed_of())

    def construct(self, x: Tensor) -> Tensor:
        """``x`` [N, H]; itself outside of training."""
        if not self.training or self.p == 0.0:
            return x
        row = _hash(ops.arange(x.shape[0]).astype(ms.int32) + self.seed + self.place)
        column = _hash(ops.arange(x.shape[1]).astype(ms.int32) + (self.first_column - self.place))
        drawn = _hash(row.reshape((-1, 1)) + column.reshape((1, -1)))
        return x * (drawn >= self.least_kept).astype(x.dtype) / (1.0 - self.p)


def seed_of() -> Parameter:
    """The seed of all masks, int32."""
    return _SEED


def set_seed(*numbers: int, first_row: int = 0) -> None:
    """Another seed, made of all the numbers, for the graphs that run from now on.

    ``first_row`` is the number of their first row in the whole step: a row has the same mask
    whichever rank works on it, and in however many batches.
    """
    crc = zlib.crc32(" ".join(map(str, numbers)).encode())
    # Rows are numbered from the seed on, in int32 that wraps around.
    _SEED.set_data(Tensor((crc + first_row) % 2**32 - 2**31, ms.int32))


_SEED = Parameter(Tensor(0, ms.int32), name="dropout_seed", requires_grad=False)


def _hash(x: Tensor) -> Tensor:
    """A number that looks random for each int32, different for different ones."""
    x = ops.bitwise_xor(x, _shifted(x, 15)) * 0x2C1B3C6D
    return ops.bitwise_xor(x, _shifted(x, 12)) * 0x297A2D39


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left also where ``x`` is negative."""
    return ops.bitwise_and(ops.bitwise_right_shift(x, bits), (1 << (32 - bits)) - 1)
