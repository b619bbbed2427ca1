"""Look into a checkpoint file or folder: tensors, layouts, steps, completeness; no content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from orchestrator.checkpoints.assemble import WholeTensor, assemble_tensors
from orchestrator.checkpoints.catalogue import CheckpointFile, StepId, check_world, unavailable
from orchestrator.checkpoints.shards import index_file, list_folder, open_shards
from orchestrator.checkpoints.strategy import Strategy, load_strategy
from orchestrator.checkpoints.tensor import FileIndex
from orchestrator.errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """A parameter: whole shape and bytes, in how many slices, and how many ranks hold each."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    nbytes: int
    slices: int = 1
    copies: int = 1
    cut: str = ""


@dataclass(frozen=True)
class StepInfo:
    """A step of a folder. ``missing`` are ranks without a file; the step is complete when none
    of them holds a slice that the others do not."""

    step: str
    ranks: Tuple[int, ...]
    missing: Tuple[int, ...]
    complete: bool
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint. ``problem`` says why no step could be put together, if so."""

    path: Path
    format: str
    tensors: Tuple[TensorInfo, ...]
    steps: Tuple[StepInfo, ...] = ()
    step: str = ""
    crc: Optional[int] = None
    metadata: Optional[Mapping[str, str]] = None
    notes: Tuple[str, ...] = ()
    problem: Optional[CheckpointError] = None


def locate(path: Path) -> Tuple[Path, Optional[Path]]:
    """Shards and strategy of a path that a user names: a folder with ``checkpoint/`` and perhaps
    ``strategy/`` in it (a run's output, a collected set), or anything else as it is."""
    if not (path / "checkpoint").is_dir():
        return path, None
    strategy = path / "strategy"
    return path / "checkpoint", strategy if strategy.is_dir() else None


def inspect(path: Path, strategy: Optional[Path] = None, *, step: str = "latest") -> Inspection:
    """Inspect a file, a folder of ``rank_N`` folders, or a folder with ``checkpoint/`` in it.

    Raises CheckpointError for a file that is broken; what is wrong with a set of files is
    reported in ``problem``.
    """
    shards, found = locate(path)
    if shards.is_file():
        return _file(index_file(shards))
    strategy = strategy or found
    layouts = load_strategy(strategy) if strategy else None
    listing = list_folder(shards)
    formats = sorted({file.format for file in listing})
    tensors: Tuple[TensorInfo, ...] = ()
    chosen = ""
    notes: Tuple[str, ...] = ()
    problem: Optional[CheckpointError] = None
    try:
        opened = open_shards(shards, layouts, step=step)
        chosen, notes = str(opened.selection.step or ""), opened.selection.notes
        assembly = assemble_tensors(opened)
        notes = (*notes, *assembly.notes)
        tensors = tuple(_tensor(tensor) for tensor in assembly.tensors)
    except CheckpointError as error:
        problem = error
    return Inspection(
        shards,
        ", ".join(formats),
        tensors,
        _steps(listing, layouts, shards),
        chosen,
        notes=notes,
        problem=problem,
    )


def _file(index: FileIndex) -> Inspection:
    tensors = tuple(TensorInfo(t.name, t.dtype, t.shape, t.nbytes) for t in index.tensors.values())
    return Inspection(
        index.path, index.format, tensors, crc=index.crc, metadata=dict(index.metadata)
    )


def _tensor(tensor: WholeTensor) -> TensorInfo:
    slices = len(tensor.pieces)
    copies = 1 + len(tensor.replicas) // slices
    cut = ""
    if tensor.layout is not None:
        cut = " x ".join(str(count) for count in tensor.layout.cuts) or "whole"
    return TensorInfo(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, slices, copies, cut)


def _steps(
    listing: List[CheckpointFile], strategy: Optional[Strategy], where: Path
) -> Tuple[StepInfo, ...]:
    by_step: Dict[StepId, List[CheckpointFile]] = {}
    for file in listing:
        by_step.setdefault(file.step or StepId(-1, -1), []).append(file)
    try:
        ranks = check_world((file.rank for file in listing), strategy, str(where))
    except CheckpointError:
        ranks, strategy = tuple(sorted({file.rank for file in listing})), None
    found: List[StepInfo] = []
    for step, files in sorted(by_step.items()):
        have = {file.rank for file in files}
        missing = tuple(rank for rank in ranks if rank not in have)
        lost = unavailable(strategy, ranks, have) if strategy else set(missing)
        name = "?" if step.step < 0 else str(step)
        size = sum(file.size for file in files)
        found.append(StepInfo(name, tuple(sorted(have)), missing, not lost, size))
    return tuple(found)
