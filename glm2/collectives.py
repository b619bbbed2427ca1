"""Collectives between ranks, and the one place where their kind is chosen.

On Ascend and GPU each is the backend's own. MindSpore's CPU has AllReduce alone (on the world
and on groups): there an all-gather is the AllReduce of a tensor that is zero but for the rank's
own part, and a reduce-scatter the rank's part of an AllReduce. Both give the same numbers, and
send about twice as much. The forms for Ascend were counted, but not run on hardware.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from math import prod
from typing import Dict, Iterator, List, Optional, Tuple

import mindspore as ms
from mindspore import Tensor, nn, ops

from glm2.parallel import Layout


@dataclass(frozen=True)
class Group:
    """Ranks that do something together, in the order of their parts."""

    ranks: Tuple[int, ...]
    rank: int
    world_size: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def place(self) -> int:
        """Of this rank among them."""
        return self.ranks.index(self.rank)


def world(layout: Layout) -> Group:
    """All ranks."""
    return Group(tuple(range(layout.world_size)), layout.rank, layout.world_size)


def data_group(layout: Layout) -> Group:
    """The ranks that hold the same weights and take different rows."""
    ranks = range(layout.model_rank, layout.world_size, layout.model_parallel)
    return Group(tuple(ranks), layout.rank, layout.world_size)


def model_group(layout: Layout) -> Group:
    """The ranks that share the layers and take the same rows."""
    first = layout.data_rank * layout.model_parallel
    ranks = range(first, first + layout.model_parallel)
    return Group(tuple(ranks), layout.rank, layout.world_size)


def copies_group(layout: Layout, copies: int) -> Group:
    """The neighbours in the model group that hold the same keys and values."""
    first = layout.rank - layout.model_rank % copies
    return Group(tuple(range(first, first + copies)), layout.rank, layout.world_size)


class AllReduce(nn.Cell):
    """The sum of a tensor over the ranks of a group; itself on a single one."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.alone = group.size == 1
        if not self.alone:
            self.sum = _all_reduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return x if self.alone else self.sum(x)


class AllGather(nn.Cell):
    """The parts of all ranks one behind the other along axis 0: [n, ..] -> [size·n, ..]."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.alone = group.size == 1
        if not self.alone:
            self.gather = _all_gather(group)

    def construct(self, x: Tensor) -> Tensor:
        return x if self.alone else self.gather(x)


class ReduceScatter(nn.Cell):
    """This rank's part along axis 0 of the sum over all: [size·n, ..] -> [n, ..]."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.alone = group.size == 1
        if not self.alone:
            self.scatter = _reduce_scatter(group)

    def construct(self, x: Tensor) -> Tensor:
        return x if self.alone else self.scatter(x)


class Enter(nn.Cell):
    """Where a tensor that all ranks have goes into a part of each: itself; its gradient is the
    sum of theirs (Megatron's f)."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.add_up = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """Sum over the ranks."""
        return (self.add_up(dout),)


class Leave(nn.Cell):
    """Where the parts of the ranks become one tensor that all have: their sum; each part has the
    gradient of the sum (Megatron's g)."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.add_up = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.add_up(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """The gradient of the sum as it is."""
        return (dout,)


@dataclass(frozen=True)
class Call:
    """A collective as it was issued."""

    kind: str
    """all_reduce, all_gather or reduce_scatter."""
    nbytes: int
    """Size of the whole tensor: what is reduced, gathered, or scattered."""
    size: int
    """Ranks of the group."""

    @property
    def sent(self) -> float:
        """Bytes that each rank sends in a ring: (n-1)/n of the tensor, twice for a sum that all
        have afterwards."""
        once = self.nbytes * (self.size - 1) / self.size
        return 2 * once if self.kind == "all_reduce" else once


@contextlib.contextmanager
def counted() -> Iterator[List[Call]]:
    """Cells made within are for one process alone: they record what they would send by native
    collectives, and take this rank's part for everybody's. To be run in PyNative mode."""
    global _calls
    _calls = []
    try:
        yield _calls
    finally:
        _calls = None


_calls: Optional[List[Call]] = None
_names: Dict[Tuple[int, ...], str] = {}


def _all_reduce(group: Group) -> nn.Cell:
    if _calls is not None:
        return _Counted("all_reduce", group, _calls)
    reduce = ops.AllReduce(ops.ReduceOp.SUM, _name(group))
    # Recompute keeps what a sum gave: to send it again would cost more than the memory does.
    reduce.recompute(False)
    return reduce


def _all_gather(group: Group) -> nn.Cell:
    if _calls is not None:
        return _Counted("all_gather", group, _calls)
    if _is_native():
        return ops.AllGather(_name(group))
    return _GatherBySum(group)


def _reduce_scatter(group: Group) -> nn.Cell:
    if _calls is not None:
        return _Counted("reduce_scatter", group, _calls)
    if _is_native():
        return ops.ReduceScatter(ops.ReduceOp.SUM, _name(group))
    return _ScatterBySum(group)


def _is_native() -> bool:
    return ms.get_context("device_target") != "CPU"


def _name(group: Group) -> str:
    """MindSpore's name of a group, which is made when it is first needed: by all of its ranks,
    as all run the same code."""
    from mindspore import communication

    if group.size == group.world_size:
        return communication.GlobalComm.WORLD_COMM_GROUP
    if group.ranks not in _names:
        name = "glm2-" + "-".join(map(str, group.ranks))
        communication.create_group(name, list(group.ranks))
        _names[group.ranks] = name
    return _names[group.ranks]


class _GatherBySum(nn.Cell):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.size, self.place = group.size, group.place
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, _name(group))

    def construct(self, x: Tensor) -> Tensor:
        parts = ()
        for i in range(self.size):
            parts = (*parts, x if i == self.place else ops.zeros_like(x))
        return self.sum(ops.concat(parts))


class _ScatterBySum(nn.Cell):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.size, self.place = group.size, group.place
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, _name(group))

    def construct(self, x: Tensor) -> Tensor:
        share = x.shape[0] // self.size
        return self.sum(x)[self.place * share : (self.place + 1) * share]


class _Counted(nn.Cell):
    def __init__(self, kind: str, group: Group, calls: List[Call]) -> None:
        super().__init__()
        self.kind, self.size, self.place, self.calls = kind, group.size, group.place, calls

    def construct(self, x: Tensor) -> Tensor:
        whole = prod(x.shape) * x.itemsize
        if self.kind == "all_gather":
            whole *= self.size
        self.calls.append(Call(self.kind, whole, self.size))
        if self.kind == "all_gather":
            return ops.concat((x,) * self.size)
        if self.kind == "reduce_scatter":
            return x[: x.shape[0] // self.size]
        return x * 1
