"""Files on hosts as if they were here: all of them but the content of their tensors.

An outline is a sparse file of the original's size. It holds the headers, small tensors, and the
samples that checks look at; what it does not hold reads as zeros.
"""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

from orchestrator.checkpoints.catalogue import CheckpointFile
from orchestrator.checkpoints.checkpoint import MAX_TEXT_BYTES, Checkpoint
from orchestrator.checkpoints.checks import check_slices_differ, sample
from orchestrator.checkpoints.geometry import spans
from orchestrator.checkpoints.newfile import write
from orchestrator.checkpoints.tensor import TEXT
from orchestrator.checkpoints.workers import no_progress
from orchestrator.engine.catalogue import Source, on_holders, outlines
from orchestrator.engine.choice import Choice
from orchestrator.engine.receive import Digest, Meter, Part, receive
from orchestrator.errors import CheckpointError

SAMPLE = 256
"""Bytes of each slice that are fetched to see whether slices are copies."""

_RANGES_AT_ONCE = 1000

Range = Tuple[int, int]


class OutlineFolder:
    """The chosen files of a step as outlines, in the folders that a merge expects."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def checkpoint(self) -> Path:
        return self._root / "checkpoint"

    @property
    def strategy(self) -> Path:
        return self._root / "strategy"

    def path(self, file: CheckpointFile) -> Path:
        return self.checkpoint / f"rank_{file.rank}" / file.name

    def fetch(self, sources: Sequence[Source], choice: Choice) -> None:
        """Make the folder anew from what the hosts say. Raises the errors of hosts, and
        CheckpointError when a file has changed since it was listed."""
        self.remove()
        for name, content in choice.strategies.items():
            self.strategy.mkdir(parents=True, exist_ok=True)
            (self.strategy / name).write_bytes(content)

        def fetch(source: Source, mine: List[CheckpointFile]) -> None:
            found = outlines(source, mine)
            for file in mine:
                outline = found[file.rank]
                if (outline.size, outline.mtime_ns) != (file.size, choice.changed[file.rank]):
                    raise CheckpointError(
                        f"{file.path} has changed since it was listed",
                        hint="it is still being written; collect again",
                        host=source.name,
                    )
                self._write(file, outline.pieces)

        on_holders(sources, choice.files, fetch)

    def fetch_samples(
        self, sources: Sequence[Source], choice: Choice, checkpoint: Checkpoint
    ) -> None:
        """Add what the checks look at and what texts say, then check that slices differ."""
        wanted: Dict[int, List[Range]] = {}
        for tensor in checkpoint.tensors:
            if len(tensor.pieces) > 1:
                start, length = sample(tensor, SAMPLE)
                pieces = tensor.pieces
            elif tensor.dtype == TEXT:
                start, length = 0, min(tensor.nbytes, MAX_TEXT_BYTES)
                pieces = tensor.pieces
            else:
                continue
            for piece in pieces:
                wanted.setdefault(piece.rank, []).extend(spans(piece.segments, start, length))
        files = {file.rank: file for file in choice.files}
        meter = Meter(0, no_progress)

        def fetch(source: Source, mine: List[CheckpointFile]) -> None:
            parts = [
                (Part(file, choice.changed[file.rank], ranges), _Filling(self.path(file), ranges))
                for file in mine
                for ranges in _some_at_once(sorted(wanted[file.rank]))
            ]
            receive(source, parts, meter)

        on_holders(sources, [files[rank] for rank in sorted(wanted)], fetch)
        check_slices_differ(checkpoint.tensors, checkpoint.files, SAMPLE)

    def renamed(self, error: CheckpointError, choice: Choice) -> CheckpointError:
        """The same error, which names files by where they really are."""
        message = error.message
        for file in choice.files:
            message = message.replace(str(self.path(file)), f"{file.host}:{file.path}")
        return CheckpointError(message, hint=error.hint, host=error.host)

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _write(self, file: CheckpointFile, pieces: Sequence[Tuple[int, bytes]]) -> None:
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as outline:
            outline.truncate(file.size)
            for offset, data in pieces:
                outline.seek(offset)
                outline.write(data)


def _some_at_once(ranges: Sequence[Range]) -> Iterator[Tuple[Range, ...]]:
    for start in range(0, len(ranges), _RANGES_AT_ONCE):
        yield tuple(ranges[start : start + _RANGES_AT_ONCE])


class _Filling:
    """Sink: byte ranges of an outline."""

    def __init__(self, path: Path, ranges: Sequence[Range]) -> None:
        self._path = path
        self._ranges = ranges
        self._data = bytearray()

    def begin(self) -> int:
        return len(self._data)

    def accept(self, data: memoryview) -> None:
        self._data += data

    def end(self, digest: Digest) -> None:
        if zlib.crc32(self._data) != digest.crc32:
            raise CheckpointError(
                f"{self._path}: what arrived of it is not what was sent",
                hint="the network or a memory damages data; collect again",
            )
        view = memoryview(self._data)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for offset, length in self._ranges:
                write(descriptor, view[:length], offset)
                view = view[length:]
        finally:
            os.close(descriptor)
