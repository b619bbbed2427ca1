"""Read pieces of tensors from many files, with a bounded number of them open."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from typing import Mapping, NamedTuple, Tuple

from orchestrator.checkpoints.geometry import spans
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.tensor import FileIndex, Segment
from orchestrator.checkpoints.workers import THREADS
from orchestrator.errors import CheckpointError

# Each thread may hold its share of half of what the process may open.
_OPEN_FILES = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 // THREADS)


class Piece(NamedTuple):
    """A part of a tensor as one file holds it: which box, and where its bytes lie there.

    ``rank`` is that of the file; BASE stands for a file that belongs to no rank.
    """

    rank: int
    box: Box
    segments: Tuple[Segment, ...]


BASE = -1
"""In place of a rank: the file with the base weights that adapters are merged into."""


class ShardReader:
    """Byte ranges of indexed files, by rank. Use one in each thread; close it at the end."""

    def __init__(self, files: Mapping[int, FileIndex]) -> None:
        self._files = files
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, rank: int, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset`` of the file. Raises CheckpointError when the file has
        changed since it was indexed."""
        descriptor = self._descriptor(rank)
        while into:
            try:
                got = os.preadv(descriptor, [into], offset)
            except OSError as error:
                raise CheckpointError(
                    f"{self.where(rank)}: cannot read at offset {offset}: {error.strerror}"
                ) from error
            if not got:
                raise self._changed(rank)
            into = into[got:]
            offset += got

    def read_piece(self, piece: Piece, start: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``start`` of a piece's content."""
        at = 0
        for offset, length in spans(piece.segments, start, len(into)):
            self.read(piece.rank, offset, into[at : at + length])
            at += length

    def where(self, rank: int) -> str:
        """Rank and path, for messages."""
        return where(self._files, rank)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, rank: int) -> int:
        if rank in self._open:
            self._open.move_to_end(rank)
            return self._open[rank]
        file = self._files[rank]
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(
                f"{self.where(rank)}: cannot be opened: {error.strerror}"
            ) from error
        self._open[rank] = descriptor
        if os.fstat(descriptor).st_size != file.size:
            raise self._changed(rank)
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _changed(self, rank: int) -> CheckpointError:
        return CheckpointError(
            f"{self.where(rank)}: changed while it was being read",
            hint="wait until the training has finished saving, then try again",
        )


def where(files: Mapping[int, FileIndex], rank: int) -> str:
    """``rank N, path`` for messages; the path alone for a file of no rank."""
    path = files[rank].path if rank in files else "no file"
    return str(path) if rank == BASE else f"rank {rank}, {path}"
