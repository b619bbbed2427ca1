"""Merge the shards of a distributed checkpoint into one file, at the speed of a copy.

Way of the data: list and choose the files of one step (``catalogue``), index them (``shards``),
put every tensor together on paper (``assemble``), lay out the new file, then move the bytes
(``transfer``). Nothing is written before everything that can be checked without reading content
has been checked; what is written appears under its name only when it is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from orchestrator.checkpoints.assemble import Assembly, WholeTensor, assemble_tensors
from orchestrator.checkpoints.catalogue import FORMATS
from orchestrator.checkpoints.geometry import whole
from orchestrator.checkpoints.mindspore_ckpt import ckpt_layout
from orchestrator.checkpoints.safetensors_file import safetensors_layout
from orchestrator.checkpoints.shards import ShardSet, open_shards
from orchestrator.checkpoints.strategy import load_strategy
from orchestrator.checkpoints.tensor import TEXT, FileLayout, NewTensor, tensor_bytes
from orchestrator.checkpoints.transfer import Move, Place, Progress, item_size, transfer, write
from orchestrator.errors import Busy, CheckpointError

DEFAULT_PREFIX = "checkpoint_"
"""Prefix of merged files, as in MindFormers' transform_ckpt.py."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. ``nbytes`` is the size of the new file."""

    output: Path
    manifest: Path
    step: str
    ranks: Tuple[int, ...]
    tensors: int
    nbytes: int
    notes: Tuple[str, ...]


def merge(
    src_dir: Path,
    strategy: Optional[Path],
    dst: Path,
    *,
    step: Union[int, str, None] = None,
    fmt: str = "ckpt",
    prefix: str = DEFAULT_PREFIX,
    include_optimizer: bool = True,
    redundancy_removed: bool = False,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge the shards in ``src_dir/rank_N`` into one file.

    ``strategy`` is a strategy file or the folder of them; None means plain data parallelism,
    where every rank holds everything. ``dst`` is a folder, in which ``rank_0/{prefix}0.{fmt}``
    is written as MindSpore's tools do, or a file name ending in ``.ckpt`` or ``.safetensors``.
    ``step`` None is the last complete one. ``progress(done, total)`` counts bytes.

    Raises CheckpointError when the set is incomplete, corrupt or inconsistent, and Busy when
    another process is writing the same file.
    """
    output = _output_path(dst, prefix, fmt)
    layouts = load_strategy(strategy) if strategy is not None else None
    shards = open_shards(src_dir, layouts, step="latest" if step is None else str(step))
    assembly = assemble_tensors(
        shards, include_optimizer=include_optimizer, redundancy_removed=redundancy_removed
    )
    if not assembly.tensors:
        raise CheckpointError(f"{src_dir}: no parameter is left to merge")
    layout = _layout(assembly, output.suffix.lstrip("."))
    moves = [_move(tensor, layout) for tensor in assembly.tensors]
    with new_file(output, layout.size) as descriptor:
        for offset, data in layout.fixed:
            write(descriptor, memoryview(data), offset)
        total = sum(move.work for move in moves)
        transfer(moves, shards.files, [descriptor], total=total, progress=progress)
    notes = (*shards.selection.notes, *assembly.notes)
    manifest = _write_manifest(output, shards, assembly, notes)
    return MergeReport(
        output,
        manifest,
        str(shards.selection.step or ""),
        tuple(shards.files),
        len(assembly.tensors),
        layout.size,
        notes,
    )


@contextmanager
def new_file(path: Path, size: int) -> Iterator[int]:
    """A descriptor of a file of ``size`` bytes that appears as ``path`` when the block ends well,
    durable on the disk, and not at all otherwise.

    Raises CheckpointError when the disk has no room or the folder cannot be written, Busy when
    another process is writing the same file.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError(f"cannot write {part}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"another process is writing {path}") from error
        try:
            _reserve(descriptor, path, size)
            yield descriptor
            os.fsync(descriptor)
            os.rename(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, path: Path, size: int) -> None:
    os.ftruncate(descriptor, 0)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise CheckpointError(
            f"{path.parent} has {free} bytes free, the merged file needs {size}",
            hint="free some space, or write to another disk",
        )
    if not size:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise CheckpointError(
            f"cannot reserve {size} bytes for {path}: {error.strerror}"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_path(dst: Path, prefix: str, fmt: str) -> Path:
    if dst.suffix.lstrip(".") in FORMATS:
        return dst
    if fmt not in FORMATS:
        raise CheckpointError(f"no format {fmt!r}", hint=f"one of {', '.join(FORMATS)}")
    if not prefix or "/" in prefix or not prefix.isprintable():
        raise CheckpointError(f"{prefix!r} is no prefix of a file name")
    return dst / "rank_0" / f"{prefix}0.{fmt}"


def _layout(assembly: Assembly, fmt: str) -> FileLayout:
    if fmt == "ckpt":
        return ckpt_layout([_new(tensor) for tensor in assembly.tensors])
    tensors = [_new(tensor) for tensor in assembly.tensors if tensor.dtype != TEXT]
    return safetensors_layout(tensors, {"format": "ms"})


def _new(tensor: WholeTensor) -> NewTensor:
    if tensor.dtype == TEXT:
        nbytes = sum(segment.length for segment in tensor.pieces[0].segments)
    else:
        nbytes = tensor_bytes(tensor.dtype, tensor.shape)
    return NewTensor(tensor.name, tensor.dtype, tensor.shape, nbytes)


def _move(tensor: WholeTensor, layout: FileLayout) -> Move:
    places: List[Place] = []
    if tensor.name in layout.segments:
        places.append(Place(0, whole(tensor.shape), layout.segments[tensor.name]))
    size = item_size(tensor.dtype, _new(tensor).nbytes)
    return Move(tensor.name, size, tensor.shape, tensor.pieces, tuple(places), tensor.replicas)


def _write_manifest(
    output: Path, shards: ShardSet, assembly: Assembly, notes: Sequence[str]
) -> Path:
    chosen = shards.selection.files
    sources: List[Mapping[str, object]] = [
        {"rank": rank, "file": chosen[rank].path, "size": index.size, "sha256": chosen[rank].sha256}
        for rank, index in shards.files.items()
    ]
    document: Dict[str, object] = {
        "schema": 1,
        "tool": f"glm2-orch {version('glm2-orch')}",
        "output": output.name,
        "size": output.stat().st_size,
        "step": str(shards.selection.step or ""),
        "world_size": len(shards.ranks),
        "tensors": len(assembly.tensors),
        "strategy": list(shards.strategy.sources) if shards.strategy else [],
        "sources": sources,
        "notes": list(notes),
    }
    manifest = output.with_name(f"{output.name}.manifest.json")
    data = json.dumps(document, indent=1).encode()
    with new_file(manifest, len(data)) as descriptor:
        write(descriptor, memoryview(data), 0)
    return manifest
