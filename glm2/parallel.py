"""How ranks divide the work, and the collectives between them: the only place that knows.

On CPU the ranks form MindSpore's dynamic cluster (variables MS_*), on Ascend they are
named by a rank table or by a dynamic cluster. One process needs neither.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Iterator, List, Mapping, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from glm2.errors import ConfigError, Glm2Error, LostRank, UsageError
from glm2.settings import Device, Parallel

BUCKET_ELEMENTS = 1 << 22
"""Gradients are added up across ranks in flat pieces of at most so many numbers, or one weight."""


@dataclass(frozen=True)
class Layout:
    """Place of this rank: rank = data_rank · model_parallel + model_rank."""

    rank: int = 0
    data_parallel: int = 1
    model_parallel: int = 1

    @property
    def world_size(self) -> int:
        return self.data_parallel * self.model_parallel

    @property
    def data_rank(self) -> int:
        """Which share of the rows this rank takes."""
        return self.rank // self.model_parallel


def layout_of(
    parallel: Parallel, use_parallel: Optional[bool], environ: Mapping[str, str]
) -> Layout:
    """The layout that settings and the variables RANK_ID and RANK_SIZE ask for."""
    world, rank = _number(environ, "RANK_SIZE", 1), _number(environ, "RANK_ID", 0)
    if not 0 <= rank < world:
        raise UsageError(f"RANK_ID is {rank} while RANK_SIZE is {world}")
    if use_parallel is None:
        use_parallel = world > 1
    if not use_parallel:
        if world > 1:
            raise UsageError(
                f"use_parallel is False, but RANK_SIZE is {world}",
                hint="leave --use_parallel out, or start one process without RANK_SIZE",
            )
        return Layout()
    if parallel.model_parallel != 1:
        raise ConfigError(
            f"parallel_config.model_parallel is {parallel.model_parallel}; glm2 cannot divide "
            "layers among ranks yet",
            hint="--set parallel_config.model_parallel=1, with data_parallel=0 for all ranks",
        )
    data_parallel = parallel.data_parallel or max(world // parallel.model_parallel, 1)
    if data_parallel * parallel.model_parallel != world:
        raise ConfigError(
            f"parallel_config asks for {data_parallel} × {parallel.model_parallel} ranks "
            f"(data × model parallel), but there are {world}",
            hint=f"start {data_parallel * parallel.model_parallel} ranks, or give --set "
            "parallel_config.data_parallel=0 to use all; one process: --use_parallel False",
        )
    return Layout(rank, data_parallel, parallel.model_parallel)


_started: List[Tuple[Device, Layout]] = []


def start(device: Device, layout: Layout, environ: Mapping[str, str]) -> None:
    """Choose the device and join the other ranks; returns when all of them are there.

    MindSpore takes both once a process: a second run in it must ask for the same.
    """
    if _started:
        if _started != [(device, layout)]:
            raise UsageError(
                "this process already runs on another device or in another layout",
                hint="start a new one",
            )
        return
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        if device.target == "CPU":
            ms.set_device("CPU")
            # Ranks of one host must not each start a thread a core.
            cores = len(os.sched_getaffinity(0))
            ms.runtime.dispatch_threads_num(device.threads or max(cores // layout.world_size, 1))
        else:
            ms.set_device(device.target, _number(environ, "DEVICE_ID", device.id))
            if device.max_memory:
                ms.runtime.set_memory(max_size=device.max_memory)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"this MindSpore cannot use {device.target}: {str(error).splitlines()[0]}",
            hint="--set context.device_target=CPU runs on the processor",
        ) from error
    if layout.world_size > 1:
        from mindspore import communication

        try:
            communication.init()
        except RuntimeError as error:
            raise Glm2Error(
                f"could not join the other ranks: {str(error).splitlines()[0]}",
                hint="see that all ranks and the scheduler run, and that MS_SCHED_HOST and "
                "MS_SCHED_PORT are the same and reachable",
            ) from error
        if communication.get_rank() != layout.rank:
            raise ConfigError(
                f"MindSpore numbers this process {communication.get_rank()}, RANK_ID says "
                f"{layout.rank}",
                hint="give MS_NODE_ID and the rank table the same order as RANK_ID",
            )
    _started.append((device, layout))


class SumOverRanks(nn.Cell):
    """The sum of a tensor over the data-parallel ranks; itself on a single one."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.alone = layout.data_parallel == 1
        if not self.alone:
            self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, x: Tensor) -> Tensor:
        return x if self.alone else self.all_reduce(x)


class SumGradients(nn.Cell):
    """The sum of each gradient over the data-parallel ranks, sent in few large pieces.

    ``shapes`` are those of the gradients, in order.
    """

    def __init__(self, layout: Layout, shapes: Sequence[Tuple[int, ...]]) -> None:
        super().__init__()
        self.alone = layout.data_parallel == 1
        self.add_up = SumOverRanks(layout)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.buckets = tuple(buckets([int(np.prod(shape)) for shape in shapes]))

    def construct(self, gradients: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        if self.alone:
            return gradients
        result = ()
        for first, last in self.buckets:
            flat = ()
            for i in range(first, last):
                flat = (*flat, gradients[i].astype(ms.float32).reshape((-1,)))
            total = self.add_up(ops.concat(flat))
            offset = 0
            for i in range(first, last):
                size = flat[i - first].shape[0]
                result = (*result, total[offset : offset + size].reshape(self.shapes[i]))
                offset += size
        return result


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


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the loss of another rank, which MindSpore notices by its heartbeat, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "AllReduce" in text and "Launch kernel failed" in text:
            reason = "a sum over all ranks failed"
        elif "state of the cluster is error" in text:
            reason = text.splitlines()[0]
        else:
            raise
        raise LostRank(
            f"another rank is gone: {reason}",
            hint="the rank that ended first has the cause at the end of its log",
        ) from error


def meet(layout: Layout) -> None:
    """Wait until all ranks are here. A rank that ends without the others crashes them."""
    if layout.world_size > 1:
        SumOverRanks(layout)(Tensor(np.ones(1, np.float32))).asnumpy()


def steps_of_ranks(layout: Layout, step: Tuple[int, int]) -> List[Tuple[int, int]]:
    """Epoch and step that each rank calls this with, in order of the ranks."""
    if layout.world_size == 1:
        return [step]
    # An all-gather, as a sum of vectors that are 0 elsewhere. float32 counts to 16 million.
    told = np.zeros((layout.world_size, 2), np.float32)
    told[layout.rank] = step
    total = ops.AllReduce(ops.ReduceOp.SUM)(Tensor(told)).asnumpy()
    return [(int(epoch), int(number)) for epoch, number in total]


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the variable {name} is {text!r}, not a number") from None
