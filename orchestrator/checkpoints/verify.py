"""Read new checkpoint files back from the disk and compare them with what they were made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.checksum import check_file
from orchestrator.checkpoints.gather import Gatherer, part_of
from orchestrator.checkpoints.geometry import intersect, offset_in
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.lora import Adapter
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from orchestrator.checkpoints.reading import Piece, ShardReader
from orchestrator.checkpoints.safetensors_file import index_safetensors
from orchestrator.checkpoints.tensor import TEXT, FileIndex
from orchestrator.checkpoints.workers import Progress, no_progress, share
from orchestrator.errors import CheckpointError


class Written(NamedTuple):
    """A new file: where it lies now, the name it will have, and what it should hold."""

    path: Path
    name: Path
    parts: Sequence[Tuple[WholeTensor, Box]]


def verify_files(
    written: Sequence[Written],
    sources: Mapping[int, FileIndex],
    adapters: Mapping[str, Adapter],
    *,
    progress: Progress = no_progress,
) -> None:
    """Raise CheckpointError, naming file and parameter, where a new file does not hold what its
    sources say. The files are read from the disk, not from memory."""
    files = {number: _index(file) for number, file in enumerate(written)}
    for number, index in files.items():
        check_file(index, str(written[number].name))
    share(
        _blocks(written, files, adapters),
        lambda: _Verifier(sources, files, [file.name for file in written]),
        total=sum(file.size for file in files.values()),
        progress=progress,
    )


class _Block(NamedTuple):
    tensor: WholeTensor
    adapter: Optional[Adapter]
    block: Box
    copies: Tuple[Piece, ...]


def _index(file: Written) -> FileIndex:
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read the disk, not memory
    finally:
        os.close(descriptor)
    read = index_safetensors if file.name.suffix == ".safetensors" else index_ckpt
    return read(file.path)


def _blocks(
    written: Sequence[Written], files: Mapping[int, FileIndex], adapters: Mapping[str, Adapter]
) -> Iterator[_Block]:
    tensors: Dict[str, WholeTensor] = {}
    copies: Dict[str, List[Piece]] = {}
    for number, file in enumerate(written):
        for tensor, box in file.parts:
            found = files[number].tensors.get(tensor.name)
            if found is None and tensor.dtype == TEXT:
                continue  # it lies in the metadata
            if found is None or found.dtype != tensor.dtype:
                raise _wrong(file.name, tensor.name)
            tensors[tensor.name] = tensor
            copies.setdefault(tensor.name, []).append(Piece(number, box, found.segments))
    for name, tensor in tensors.items():
        for block in tensor.blocks():
            yield _Block(tensor, adapters.get(name), block, tuple(copies[name]))


class _Verifier:
    """One thread's work: gather a block anew, read what was written of it, compare."""

    def __init__(
        self,
        sources: Mapping[int, FileIndex],
        files: Mapping[int, FileIndex],
        names: Sequence[Path],
    ) -> None:
        self._sources = ShardReader(sources)
        self._written = ShardReader(files)
        self._gatherer = Gatherer(self._sources)
        self._names = names

    def do(self, job: _Block) -> int:
        item = job.tensor.item_size
        expected = self._gatherer.block(job.tensor, job.block, job.adapter)
        compared = 0
        for copy in job.copies:
            common = intersect(copy.box, job.block)
            if common is None:
                continue
            part = part_of(expected, job.block, common, item)
            found = bytearray(len(part))
            self._written.read_piece(copy, offset_in(common, copy.box) * item, memoryview(found))
            if found != part:
                raise _wrong(self._names[copy.rank], job.tensor.name)
            compared += len(part)
        return compared

    def close(self) -> None:
        self._sources.close()
        self._written.close()


def _wrong(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: parameter {name} does not read back as it was written",
        hint="the disk or the memory of this machine is faulty; merge again on another",
    )
