"""How the worker (``glm2``) cuts its checkpoints for a layout of ranks.

The same rules are in ``glm2/division.py``, which this package does not import; a test holds the
strategies of both against each other.
"""

from __future__ import annotations

import re
from typing import Dict, Mapping, NamedTuple, Optional, Sequence

from orchestrator.checkpoints.assemble import WholeTensor, is_optimizer_state
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.strategy import Strategy
from orchestrator.checkpoints.target import owner

_OUTPUTS = re.compile(
    r"(query_key_value|dense_h_to_4h|output_layer)\.(weight|bias|mindpet_delta_lora_b)$"
)
_INPUTS = re.compile(r"(self_attention\.dense|dense_4h_to_h)\.(weight|mindpet_delta_lora_a)$")


class WorkerCut(NamedTuple):
    """``parallel_config`` of the worker, with the number of ranks filled in."""

    data: int
    model: int
    shard_optimizer: bool
    """``parallel.enable_parallel_optimizer``: the optimizer's state is cut among data ranks."""
    whole_embedding: bool
    """``vocab_emb_dp``: each rank holds the embedding whole."""

    def __str__(self) -> str:
        shared = ", state divided" if self.shard_optimizer and self.data > 1 else ""
        return f"dp {self.data}, mp {self.model}{shared}"


def worker_cut(values: Mapping[str, object], ranks: int) -> WorkerCut:
    """What a configuration of the worker asks for with so many ranks."""
    section, context = values.get("parallel_config"), values.get("parallel")
    layout = section if isinstance(section, dict) else {}
    model = _number(layout.get("model_parallel")) or 1
    shard = isinstance(context, dict) and context.get("enable_parallel_optimizer") is True
    return WorkerCut(
        _number(layout.get("data_parallel")) or max(ranks // model, 1),
        model,
        shard,
        layout.get("vocab_emb_dp") is not False,
    )


def worker_strategy(tensors: Sequence[WholeTensor], cut: WorkerCut) -> Strategy:
    """The strategy of the worker's checkpoints for these tensors: weights, and their moments."""
    layouts: Dict[str, Layout] = {
        tensor.name: _layout(tensor, cut)
        for tensor in tensors
        if tensor.shape and _is_named(tensor)
    }
    return Strategy((layouts,), cut.data * cut.model)


def _is_named(tensor: WholeTensor) -> bool:
    """Progress has no dots in its names; it is whole on each rank and in no strategy."""
    return "." in tensor.name


def _layout(tensor: WholeTensor, cut: WorkerCut) -> Layout:
    axis = _axis(owner(tensor.name), cut)
    if axis is not None and tensor.shape[axis] % cut.model:
        axis = None
    map_ = tuple((0,) if i == axis else () for i in range(len(tensor.shape)))
    matrix = (cut.data, cut.model)
    rows = tensor.shape[0] // (cut.model if axis == 0 else 1)
    holders = cut.data if axis is not None else cut.data * cut.model
    sharded = cut.shard_optimizer and cut.data > 1 and is_optimizer_state(tensor.name)
    if not sharded or rows % holders:
        return Layout(matrix, map_)
    return Layout(matrix, map_, cut.model if axis is not None else 1, holders)


def _axis(name: str, cut: WorkerCut) -> Optional[int]:
    if cut.model == 1:
        return None
    if name.endswith("embedding_table"):
        return None if cut.whole_embedding else 0
    if _OUTPUTS.search(name):
        return 0
    return 1 if _INPUTS.search(name) else None


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
