"""How ranks divide the work, how a process becomes one of them, and what they tell each other.

On CPU the ranks form MindSpore's dynamic cluster (variables MS_*), on Ascend they are
named by a rank table or by a dynamic cluster. One process needs neither.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Iterator, List, Mapping, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from glm2.errors import ConfigError, Glm2Error, LostRank, UsageError
from glm2.settings import Device, Parallel


@dataclass(frozen=True)
class Layout:
    """Place of this rank: rank = data_rank · model_parallel + model_rank."""

    rank: int = 0
    data_parallel: int = 1
    model_parallel: int = 1
    optimizer_shard: bool = False
    """Whether the ranks with the same weights share the optimizer's state."""

    @property
    def world_size(self) -> int:
        return self.data_parallel * self.model_parallel

    @property
    def data_rank(self) -> int:
        """Which share of the rows this rank takes."""
        return self.rank // self.model_parallel

    @property
    def model_rank(self) -> int:
        """Which share of the layers this rank has."""
        return self.rank % self.model_parallel


ONE_RANK = Layout()


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
    data_parallel = parallel.data_parallel or max(world // parallel.model_parallel, 1)
    if data_parallel * parallel.model_parallel != world:
        raise ConfigError(
            f"parallel_config asks for {data_parallel} × {parallel.model_parallel} ranks "
            f"(data × model parallel), but there are {world}",
            hint=f"start {data_parallel * parallel.model_parallel} ranks, or give --set "
            "parallel_config.data_parallel=0 to use all; one process: --use_parallel False",
        )
    shard = parallel.optimizer_shard and data_parallel > 1
    return Layout(rank, data_parallel, parallel.model_parallel, shard)


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
            # These only start kernels, and spin between two of them. The kernels share their work
            # among threads of their own, one a core, from which more than one of these takes time:
            # a training step on 2 cores took half as long again with 2.
            ms.runtime.dispatch_threads_num(device.threads or 1)
            plan_places()
        else:
            ms.set_device(device.target, _number(environ, "DEVICE_ID", device.id))
            if device.max_memory:
                ms.runtime.set_memory(max_size=device.max_memory)
    except (RuntimeError, ValueError) as error:
        if not ("has been initialized" in str(error) and _runs_on(device)):
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


def plan_places() -> None:
    """Let MindSpore plan the places of all results of a graph once, on CPU.

    A token decoded on 2 cores took a sixth longer with a search for each. It is taken once, before
    MindSpore first computes: what a script has chosen stays.
    """
    with contextlib.suppress(RuntimeError):
        ms.runtime.set_memory(optimize_level="O1")


def _runs_on(device: Device) -> bool:
    """Whether MindSpore began before us on this device, as in a notebook: it is chosen once."""
    return ms.get_context("device_target") == device.target and (
        device.target == "CPU" or ms.get_context("device_id") == device.id
    )


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
        _world_sum(np.ones(1, np.float32))


def steps_of_ranks(layout: Layout, step: Tuple[int, int]) -> List[Tuple[int, int]]:
    """Epoch and step that each rank calls this with, in order of the ranks."""
    if layout.world_size == 1:
        return [step]
    # An all-gather, as a sum of vectors that are 0 elsewhere. float32 counts to 16 million.
    told = np.zeros((layout.world_size, 2), np.float32)
    told[layout.rank] = step
    return [(int(epoch), int(number)) for epoch, number in _world_sum(told)]


def texts_of_ranks(layout: Layout, text: str) -> List[str]:
    """The text that each rank calls this with, in order of the ranks."""
    if layout.world_size == 1:
        return [text]
    own = np.frombuffer(text.encode("utf-8"), np.uint8)
    sizes = np.zeros(layout.world_size, np.float32)
    sizes[layout.rank] = len(own)
    ends = np.cumsum(_world_sum(sizes).astype(np.int64))
    told = np.zeros(max(int(ends[-1]), 1), np.float32)
    told[ends[layout.rank] - len(own) : ends[layout.rank]] = own
    every = _world_sum(told).astype(np.uint8)
    starts = [0, *ends[:-1]]
    return [every[a:b].tobytes().decode("utf-8") for a, b in zip(starts, ends)]


def sum_over_ranks(layout: Layout, values: np.ndarray) -> np.ndarray:
    """The sum of float32 arrays of one shape over all ranks."""
    return values if layout.world_size == 1 else _world_sum(values)


def _world_sum(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = ops.AllReduce(ops.ReduceOp.SUM)(Tensor(values)).asnumpy()
    return found


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the variable {name} is {text!r}, not a number") from None
