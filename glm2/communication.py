"""How long a step's collectives take, measured before training by doing them alone.

MindSpore does not tell how much of a step its collectives were. Each large one of a step
(``volume.exchanges``) is therefore done alone, on numbers of the same size and type, and its best
time counted as often as a step does it. Ranks begin together then: waiting for a slower rank is
not in it, and what a device does meanwhile is not taken off.
"""

from __future__ import annotations

import time
from typing import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from glm2.collectives import AllGather, AllReduce, ReduceScatter, data_group, model_group
from glm2.layers import float_type
from glm2.parallel import Layout, meet
from glm2.volume import Exchange

_KINDS = {"all_reduce": AllReduce, "all_gather": AllGather, "reduce_scatter": ReduceScatter}
_TIMES = 3


def seconds_of(exchanges: Sequence[Exchange], layout: Layout) -> float:
    """Seconds that the exchanges of a step take. All ranks must call this together."""
    return sum((_seconds(exchange, layout) * exchange.count for exchange in exchanges), 0.0)


def _seconds(exchange: Exchange, layout: Layout) -> float:
    group = (data_group if exchange.group == "data" else model_group)(layout)
    cell = _First(_KINDS[exchange.kind](group))
    own = exchange.numbers // (group.size if exchange.kind == "all_gather" else 1)
    # bfloat16 gradients travel as float32; activations of that type do not exist on CPU.
    numbers = ops.zeros((own,), float_type(exchange.kind_of_number))
    best = float("inf")
    for _ in range(1 + _TIMES):  # the first one compiles
        meet(layout)
        begun = time.monotonic()
        cell(numbers).asnumpy()
        best = min(best, time.monotonic() - begun)
    return best


class _First(nn.Cell):
    """One number of what a collective gives, so that little is copied to the host."""

    def __init__(self, collective: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.collective = collective

    def construct(self, x: Tensor) -> Tensor:
        return self.collective(x)[:1].astype(ms.float32)
