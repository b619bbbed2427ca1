"""A tensor as it lies in a file: name, type, shape, and where its bytes are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Optional, Protocol, Tuple

import numpy as np

from glm2.errors import CheckpointError

Shape = Tuple[int, ...]

ITEM_SIZE: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}
"""Bytes of an element, by the names that all formats' types are given here."""

BLOCK = 8 << 20
"""Bytes read at once."""


class Content(Protocol):
    """A tensor that can be written: what it is, and its bytes in blocks of any size."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    def blocks(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one file. Its elements are little-endian."""

    name: str
    dtype: str
    """A key of ITEM_SIZE, or another name for what cannot be converted."""
    shape: Shape
    file: Path
    segments: Tuple[Tuple[int, int], ...]
    """Offset and length of the runs of bytes that make it up, in order."""
    strides: Optional[Tuple[int, ...]] = None
    """Of a PyTorch tensor that is not in C order: elements between neighbours on each axis."""

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in C order. CheckpointError when the file has lost them meanwhile."""
        if self.strides is not None:
            yield from self._strided_blocks()
            return
        with self.file.open("rb", buffering=0) as stream:
            for offset, length in self.segments:
                for at in range(offset, offset + length, BLOCK):
                    wanted = min(BLOCK, offset + length - at)
                    block = os.pread(stream.fileno(), wanted, at)
                    if len(block) != wanted:
                        raise CheckpointError(f"{self.file} became shorter while it was read")
                    yield block

    def _strided_blocks(self) -> Iterator[bytes]:
        assert self.strides is not None
        ((offset, length),) = self.segments
        item = ITEM_SIZE[self.dtype]
        flat = np.memmap(self.file, f"u{item}", "r", offset, (length // item,))
        steps = [step * item for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        rows = max(1, BLOCK // max(1, item * prod(self.shape[1:])))
        for first in range(0, self.shape[0], rows):
            yield view[first : first + rows].tobytes()


def nbytes(tensor: Content) -> int:
    """Bytes of a tensor's content."""
    return ITEM_SIZE[tensor.dtype] * prod(tensor.shape)


def regroup(blocks: Iterable[bytes], sizes: Iterable[int]) -> Iterator[Iterator[memoryview]]:
    """Cut a stream of blocks into runs of exactly the given sizes, to be used up in order."""
    source = iter(blocks)
    rest = memoryview(b"")

    def run(size: int) -> Iterator[memoryview]:
        nonlocal rest
        while size:
            rest = rest or memoryview(next(source))
            piece, rest = rest[:size], rest[size:]
            size -= len(piece)
            yield piece

    for size in sizes:
        yield run(size)
