"""The layout that a checkpoint is cut for: from a strategy file, or from words like ``dp2,mp4``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from orchestrator.checkpoints.assemble import OPTIMIZER_PREFIXES, WholeTensor, is_optimizer_state
from orchestrator.checkpoints.geometry import whole
from orchestrator.checkpoints.layout import Box, Layout
from orchestrator.checkpoints.strategy import Strategy, load_strategy
from orchestrator.errors import CheckpointError


class Words(NamedTuple):
    """``dp2,mp4,opt``: ranks by kind of parallelism, and whether the optimizer is sharded."""

    data: int
    model: int
    shard_optimizer: bool


Target = Union[Path, Words]
"""A strategy file (or folder of them), or a layout in words."""

_MODEL_AXIS = (
    # GLM2: which axis of a weight (outputs × inputs) model parallelism cuts.
    (re.compile(r"(query_key_value|dense_h_to_4h)\.(weight|bias)$"), 0),
    (re.compile(r"(attention\.dense|dense_4h_to_h)\.weight$"), 1),
    (re.compile(r"(embedding_weight|word_embeddings\.weight|output_layer\.weight)$"), 0),
)


def parse_words(text: str) -> Words:
    """Read ``dp2,mp4`` or ``dp2,mp4,opt``. Raises CheckpointError saying what is expected."""
    sizes: Dict[str, int] = {}
    shard = False
    for word in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(dp|mp)([1-9]\d{0,5})", word, re.ASCII)
        if word == "opt":
            shard = True
        elif match and match[1] not in sizes:
            sizes[match[1]] = int(match[2])
        else:
            raise CheckpointError(
                f"{text!r} is no layout",
                hint="write dp2,mp4 or dp2,mp4,opt; for pipeline stages give --dst_ckpt_strategy",
            )
    return Words(sizes.get("dp", 1), sizes.get("mp", 1), shard)


def target_strategy(target: Target, tensors: Sequence[WholeTensor]) -> Strategy:
    """The strategy of a target for these tensors.

    In words, a parameter is cut along the axis that the source cut, or, where the source held it
    whole, along the axis that GLM2 cuts; moments like their parameters; what the source's strategy
    does not name stays whole.
    """
    if isinstance(target, Path):
        return load_strategy(target)
    by_name = {tensor.name: tensor for tensor in tensors}
    layouts: Dict[str, Layout] = {}
    for tensor in tensors:
        owned = by_name.get(owner(tensor.name), tensor)
        if tensor.shape and (owned.layout is not None or _glm2_axis(owned.name) is not None):
            layouts[tensor.name] = _layout(tensor, _model_axis(owned), target)
    if not layouts:
        raise CheckpointError(
            "nothing says how to cut these parameters", hint="give a strategy of the source"
        )
    return Strategy((layouts,), target.data * target.model)


def cut_for_target(
    tensors: Sequence[WholeTensor], strategy: Strategy
) -> Tuple[Dict[int, Tuple[Tuple[WholeTensor, Box], ...]], Tuple[str, ...]]:
    """What each rank of the target receives, and notes on what no rank does.

    Raises CheckpointError when a parameter does not divide, or only one side has it.
    """
    named = frozenset(strategy.names())
    kept, notes = _kept(tensors, named)
    _check_all_found(strategy, kept)
    ranks: Dict[int, List[Tuple[WholeTensor, Box]]] = {r: [] for r in range(strategy.world_size)}
    for tensor in kept:
        for rank, parts in ranks.items():
            layout = strategy.layout(rank, tensor.name)
            if layout is None and tensor.name in named:
                continue  # another stage's
            parts.append((tensor, _box(tensor, layout, rank % strategy.stage_ranks)))
    return {rank: tuple(parts) for rank, parts in ranks.items()}, notes


def _kept(
    tensors: Sequence[WholeTensor], named: frozenset[str]
) -> Tuple[List[WholeTensor], Tuple[str, ...]]:
    kept: List[WholeTensor] = []
    dropped = 0
    for tensor in tensors:
        if tensor.name in named or tensor.layout is None:
            kept.append(tensor)
        elif is_optimizer_state(tensor.name):
            dropped += 1
        else:
            raise CheckpointError(
                f"parameter {tensor.name} is not in the target strategy",
                hint="the target strategy is of another model",
            )
    return kept, ((f"{dropped} moments left out: the target has none",) if dropped else ())


def _check_all_found(strategy: Strategy, kept: Sequence[WholeTensor]) -> None:
    found = {tensor.name for tensor in kept}
    moments = any(is_optimizer_state(name) for name in found)
    for name in strategy.names():
        if name not in found and (moments or not is_optimizer_state(name)):
            raise CheckpointError(
                f"parameter {name} is in the target strategy, but not in the checkpoint",
                hint="the target strategy is of another model",
            )


def _box(tensor: WholeTensor, layout: Optional[Layout], local_rank: int) -> Box:
    if layout is None or not tensor.shape:
        return whole(tensor.shape)
    if len(layout.tensor_map) != len(tensor.shape):
        raise CheckpointError(
            f"parameter {tensor.name}: the target strategy has {len(layout.tensor_map)} axes, "
            f"the checkpoint shape {list(tensor.shape)}",
            hint="the target strategy is of another model",
        )
    try:
        return layout.box(local_rank, layout.piece_shape(tensor.shape))
    except ValueError as error:
        raise CheckpointError(
            f"parameter {tensor.name} {list(tensor.shape)} cannot be cut for the target: {error}"
        ) from error


def owner(name: str) -> str:
    """The parameter that a moment belongs to; a parameter itself."""
    prefix = next((p for p in OPTIMIZER_PREFIXES if name.startswith(p)), "")
    return name[len(prefix) :]


def _model_axis(tensor: WholeTensor) -> Optional[int]:
    """Axis that model parallelism cuts; None where it holds the parameter whole."""
    if tensor.layout is not None:
        cut = [axis for axis, axes in enumerate(tensor.layout.tensor_map) if axes]
        if cut:
            return cut[0]
    return _glm2_axis(tensor.name)


def _glm2_axis(name: str) -> Optional[int]:
    return next((axis for pattern, axis in _MODEL_AXIS if pattern.search(name)), None)


def _layout(tensor: WholeTensor, axis: Optional[int], words: Words) -> Layout:
    cut = tuple((0,) if i == axis else () for i in range(len(tensor.shape)))
    matrix = (words.data, words.model)
    plain = Layout(matrix, cut)
    rows = tensor.shape[0] // plain.cuts[0]
    copies = words.data * (1 if axis is not None else words.model)
    if not words.shard_optimizer or copies == 1 or rows % copies:
        return plain
    return Layout(matrix, cut, words.model if axis is not None else 1, copies)
