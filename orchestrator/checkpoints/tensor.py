"""A tensor as it lies in a file: name, type, shape, and where its bytes are. No content is held."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

ITEM_SIZE: Mapping[str, int] = {
    "Bool": 1,
    "Int4": 1,
    "Int8": 1,
    "UInt8": 1,
    "Int16": 2,
    "UInt16": 2,
    "Float16": 2,
    "BFloat16": 2,
    "Int32": 4,
    "UInt32": 4,
    "Float32": 4,
    "Int64": 8,
    "UInt64": 8,
    "Float64": 8,
}
"""Bytes per element of every tensor type that MindSpore 2.10 writes, by MindSpore's name."""

TEXT = "str"
"""Type name of a text stored among the tensors (``append_dict`` of ``save_checkpoint``)."""


class Segment(NamedTuple):
    """A run of bytes in a file."""

    offset: int
    length: int


class StoredTensor(NamedTuple):
    """One tensor of one file; ``segments`` in order are its bytes: little-endian, C order.

    A scalar has shape ``()``. A text has dtype ``str`` and UTF-32LE bytes.
    A NamedTuple, because the index of a large set holds hundreds of thousands.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]
    segments: Tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        return sum(segment.length for segment in self.segments)


@dataclass(frozen=True)
class FileIndex:
    """What a checkpoint file holds, in the order of the file."""

    path: Path
    format: str
    """``ckpt`` or ``safetensors``."""
    size: int
    tensors: Mapping[str, StoredTensor]
    crc: Optional[int] = None
    """CRC32 that the file says it has; None where it carries none."""
    metadata: Mapping[str, str] = field(default_factory=dict)


class NewTensor(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class FileLayout:
    """Where everything goes in a file to be written, known before its first byte is.

    ``fixed`` are the bytes between the tensors (headers), each with its offset;
    ``segments`` says for each tensor where its content goes.
    """

    size: int
    fixed: Tuple[Tuple[int, bytes], ...]
    segments: Mapping[str, Tuple[Segment, ...]]


def tensor_bytes(dtype: str, shape: Tuple[int, ...]) -> int:
    """Bytes of a tensor of this type and shape; KeyError for an unknown type."""
    return ITEM_SIZE[dtype] * prod(shape)


class Interned:
    """Shares equal names and shapes among the indexes of one set: ranks repeat each other's."""

    def __init__(self) -> None:
        self._seen: Dict[object, object] = {}

    def name(self, value: str) -> str:
        return self._seen.setdefault(value, value)  # type: ignore[return-value]

    def shape(self, value: Tuple[int, ...]) -> Tuple[int, ...]:
        return self._seen.setdefault(value, value)  # type: ignore[return-value]
