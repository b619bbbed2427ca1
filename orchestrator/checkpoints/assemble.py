"""From the indexes of all ranks to whole tensors: which piece of which file goes where.

Pure. Everything that can be wrong with a set of shards without looking at their content is found
here: missing ranks and parameters, types, shapes, and layouts that do not fit the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.geometry import blocks
from orchestrator.checkpoints.layout import Box, Layout
from orchestrator.checkpoints.reading import Piece
from orchestrator.checkpoints.shards import ShardSet
from orchestrator.checkpoints.tensor import ITEM_SIZE, TEXT, StoredTensor
from orchestrator.errors import CheckpointError

BLOCK_BYTES = 1 << 20
"""Bytes of a tensor that are held in memory at once where it cannot be copied piece by piece."""

OPTIMIZER_PREFIXES = (
    "adam_m.",
    "adam_v.",
    "moment1.",
    "moment2.",
    "moments.",
    "accum.",
    "accu_grads.",
)
"""What MindSpore's optimizers put before a parameter's name for the state they keep of it."""

OPTIMIZER_SCALARS = frozenset(("beta1_power", "beta2_power"))

_ADAPTER_MARKS = ("lora_", "_lora", "lora.", "pet_delta", "p_tuning", "prefix_encoder")


@dataclass(frozen=True)
class WholeTensor:
    """A tensor put together. ``pieces`` are disjoint and fill it; ``replicas`` are further copies
    of pieces, which must be equal to the piece with the same box. ``layout`` is None for a
    parameter that the strategy does not name (or without a strategy)."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    pieces: Tuple[Piece, ...]
    replicas: Tuple[Piece, ...]
    layout: Optional[Layout]
    stage: int = 0

    @property
    def item_size(self) -> int:
        """Bytes of an element; a text is one element."""
        if self.dtype == TEXT:
            return sum(segment.length for segment in self.pieces[0].segments)
        return ITEM_SIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.item_size * prod(self.shape)

    def blocks(self) -> Iterator[Box]:
        """Boxes of at most a MiB, each contiguous, in C order."""
        return blocks(self.shape, max(1, BLOCK_BYTES // max(1, self.item_size)))


@dataclass(frozen=True)
class Assembly:
    """All tensors of a checkpoint. ``again`` are pairs: a tensor, and the same one as a later
    pipeline stage holds it under another cut; the two must be equal."""

    tensors: Tuple[WholeTensor, ...]
    again: Tuple[Tuple[WholeTensor, WholeTensor], ...] = ()
    notes: Tuple[str, ...] = ()


def assemble_tensors(
    shards: ShardSet, *, include_optimizer: bool = True, redundancy_removed: bool = False
) -> Assembly:
    """Put every parameter of a set together.

    ``redundancy_removed`` accepts sets in which each slice was saved by one rank only
    (``remove_redundancy`` of MindSpore). Raises CheckpointError naming rank, file, parameter,
    what was expected and what was found.
    """
    known: Dict[str, WholeTensor] = {}
    again: List[Tuple[WholeTensor, WholeTensor]] = []
    strategy_names = frozenset(shards.strategy.names()) if shards.strategy else frozenset()
    for stage, (first, ranks) in enumerate(shards.stages()):
        layouts = shards.strategy.stages[stage] if shards.strategy else {}
        present = [rank for rank in ranks if rank in shards.files]
        for name in _names(shards, present):
            layout = layouts.get(name)
            if layout is None and name in strategy_names:
                continue  # a copy that another stage owns and trains; this one is stale
            tensor = _whole(shards, stage, first, present, name, layout, redundancy_removed)
            if name not in known:
                known[name] = tensor
            elif layout == known[name].layout:
                known[name] = _with_more_replicas(shards, known[name], tensor)
            else:
                _check_same_kind(shards, known[name], tensor)
                again.append((known[name], tensor))
    notes = _check_nothing_lost(shards, known)
    _check_moments(shards, known)
    wanted = [t for t in known.values() if include_optimizer or not is_optimizer_state(t.name)]
    # The order of MindSpore's transform_checkpoints, so that files can be compared byte for byte:
    # as in the file of the last rank, then the one before, and last what no strategy names.
    order = {name: i for i, name in enumerate(_names(shards, sorted(shards.files, reverse=True)))}
    wanted.sort(key=lambda tensor: (tensor.layout is None, order[tensor.name]))
    return Assembly(tuple(wanted), tuple(again), notes)


def is_optimizer_state(name: str) -> bool:
    """Whether a parameter belongs to the optimizer rather than to the model."""
    return name.startswith(OPTIMIZER_PREFIXES) or name in OPTIMIZER_SCALARS


def is_adapter(name: str) -> bool:
    """Whether a parameter is of a fine-tuning adapter (LoRA and its like)."""
    return any(mark in name for mark in _ADAPTER_MARKS)


def _names(shards: ShardSet, ranks: Iterable[int]) -> List[str]:
    names: Dict[str, None] = {}
    for rank in ranks:
        names.update(dict.fromkeys(shards.files[rank].tensors))
    return list(names)


def _whole(
    shards: ShardSet,
    stage: int,
    first: int,
    present: Sequence[int],
    name: str,
    layout: Optional[Layout],
    redundancy_removed: bool,
) -> WholeTensor:
    holders = [rank for rank in present if name in shards.files[rank].tensors]
    stored = {rank: shards.files[rank].tensors[name] for rank in holders}
    model = stored[holders[0]]
    for rank in holders[1:]:
        _check_equal_kind(shards, holders[0], model, rank, stored[rank])
    cut = layout or Layout((len(shards.ranks),), tuple(() for _ in model.shape))
    if model.shape == () and set(cut.cuts) <= {1}:
        cut = replace(cut, tensor_map=(), opt_shard_size=0)
    if len(cut.tensor_map) != len(model.shape):
        raise CheckpointError(
            f"rank {holders[0]}, {shards.files[holders[0]].path}: parameter {name}: the strategy "
            f"has {len(cut.tensor_map)} axes, the file has shape {list(model.shape)}",
            hint="the strategy belongs to another run",
        )
    at: Dict[Tuple[int, ...], List[int]] = {}
    for rank in holders:
        at.setdefault(cut.position(rank - first), []).append(rank)
    if len(holders) < len(present) and not redundancy_removed:
        _check_no_holder_lost(shards, first, present, holders, name, cut)
    if set(at) != {cut.position(rank) for rank in range(cut.ranks)}:
        raise _slice_missing(shards, first, name, cut, set(at), stage)
    pieces = [_piece(cut, first, ranks[0], stored[ranks[0]]) for ranks in at.values()]
    replicas = [
        _piece(cut, first, rank, stored[rank]) for ranks in at.values() for rank in ranks[1:]
    ]
    pieces.sort(key=lambda piece: piece.box)
    return WholeTensor(
        name,
        model.dtype,
        cut.full_shape(model.shape),
        tuple(pieces),
        tuple(replicas),
        layout,
        stage,
    )


def _piece(cut: Layout, first: int, rank: int, tensor: StoredTensor) -> Piece:
    return Piece(rank, cut.box(rank - first, tensor.shape), tensor.segments)


def _check_equal_kind(
    shards: ShardSet, one: int, model: StoredTensor, rank: int, found: StoredTensor
) -> None:
    where = f"rank {rank}, {shards.files[rank].path}: parameter {model.name}"
    if found.dtype != model.dtype:
        raise CheckpointError(
            f"{where}: expected {model.dtype} as in rank {one}, found {found.dtype}",
            hint="this rank's file is of another run or was converted; collect it again",
        )
    if found.shape != model.shape:
        raise CheckpointError(
            f"{where}: expected shape {list(model.shape)} as in rank {one}, "
            f"found {list(found.shape)}",
            hint="this rank's file is of another run or layout; collect it again",
        )
    if found.nbytes != model.nbytes:  # only texts can differ here
        raise CheckpointError(
            f"{where}: expected {model.nbytes} bytes as in rank {one}, found {found.nbytes}"
        )


def _check_no_holder_lost(
    shards: ShardSet,
    first: int,
    present: Sequence[int],
    holders: Sequence[int],
    name: str,
    cut: Layout,
) -> None:
    lacking = next(rank for rank in present if rank not in holders)
    file = shards.files[lacking]
    if all(f.metadata.get("remove_redundancy") == "True" for f in shards.files.values()):
        return
    alone = all(
        sum(cut.position(r - first) == cut.position(h - first) for r in holders) == 1
        for h in holders
    )
    covered = {cut.position(r - first) for r in holders} == {
        cut.position(r - first) for r in present
    }
    if alone and covered:
        hint = (
            "the set looks saved with remove_redundancy=True; if so, merge it with "
            "--redundancy-removed"
        )
    else:
        hint = "the file is cut off or of another model; collect it again"
    last = next(reversed(list(file.tensors)), "none")
    raise CheckpointError(
        f"rank {lacking}, {file.path}: parameter {name} is missing: expected it as in rank "
        f"{holders[0]}, found {len(file.tensors)} parameters, the last being {last}",
        hint=hint,
    )


def _slice_missing(
    shards: ShardSet,
    first: int,
    name: str,
    cut: Layout,
    found: Iterable[Tuple[int, ...]],
    stage: int,
) -> CheckpointError:
    have = set(found)
    lacking = [first + rank for rank in range(cut.ranks) if cut.position(rank) not in have]
    file = shards.files.get(lacking[0])
    where = str(file.path) if file else "no file"
    return CheckpointError(
        f"rank {lacking[0]}, {where}: parameter {name} (pipeline stage {stage}): expected "
        f"{len({cut.position(rank) for rank in range(cut.ranks)})} different slices, found "
        f"{len(have)}; ranks {lacking[:8]} would hold the missing ones",
        hint="collect the missing rank's file again, or use another step",
    )


def _with_more_replicas(shards: ShardSet, one: WholeTensor, more: WholeTensor) -> WholeTensor:
    _check_same_kind(shards, one, more)
    return replace(one, replicas=(*one.replicas, *more.pieces, *more.replicas))


def _check_same_kind(shards: ShardSet, one: WholeTensor, other: WholeTensor) -> None:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        rank = other.pieces[0].rank
        raise CheckpointError(
            f"rank {rank}, {shards.files[rank].path}: parameter {one.name}: expected "
            f"{one.dtype}{list(one.shape)} as in pipeline stage {one.stage}, found "
            f"{other.dtype}{list(other.shape)} in stage {other.stage}",
            hint="the strategy belongs to another run",
        )


def _check_nothing_lost(shards: ShardSet, known: Mapping[str, WholeTensor]) -> Tuple[str, ...]:
    """Parameters that the strategy names must be in the files, except whole families that the
    save left out: moments (weights only), or everything but the adapters (LoRA)."""
    if shards.strategy is None:
        return ()
    absent = [name for name in shards.strategy.names() if name not in known]
    absent = [name for name in absent if not name.startswith("accu_grads.")]
    families = {_family(name) for name in known}
    notes: List[str] = []
    for name in absent:
        family = _family(name)
        only_adapters = "adapter" in families and "weights" not in families
        if family in families or (family == "weights" and not only_adapters):
            stage = next(i for i, names in enumerate(shards.strategy.stages) if name in names)
            rank = stage * shards.strategy.stage_ranks
            file = shards.files.get(rank)
            raise CheckpointError(
                f"rank {rank}, {file.path if file else 'no file'}: parameter {name}: expected by "
                f"the strategy of pipeline stage {stage}, found in no rank's file",
                hint="the files are cut off, or the strategy belongs to another run",
            )
        note = f"the files hold no {family}"
        if note not in notes:
            notes.append(note)
    return tuple(notes)


def _family(name: str) -> str:
    prefix = next((p for p in OPTIMIZER_PREFIXES if name.startswith(p)), "")
    if prefix:
        return f"optimizer state {prefix}*"
    return "adapter" if is_adapter(name) else "weights"


def _check_moments(shards: ShardSet, known: Mapping[str, WholeTensor]) -> None:
    """A moment has the shape of its parameter; a strategy that fits one and not the other is
    wrong for these files."""
    for name, tensor in known.items():
        prefix = next((p for p in OPTIMIZER_PREFIXES if name.startswith(p)), "")
        owner = known.get(name[len(prefix) :]) if prefix else None
        if owner is not None and owner.shape != tensor.shape:
            rank = tensor.pieces[0].rank
            raise CheckpointError(
                f"rank {rank}, {shards.files[rank].path}: parameter {name}: expected shape "
                f"{list(owner.shape)} as {owner.name} has when merged, found {list(tensor.shape)}",
                hint="the strategy belongs to another run",
            )
