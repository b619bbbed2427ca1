"""MindSpore ``.ckpt`` files: index one without reading its content; lay out a new one.

A file is a run of records ``0A len { 0A len tag | 12 len { (08 dim)* | 12 len type | 1A len
content } }``, which as a whole is one proto2 message ``Checkpoint``. A long tensor is cut into
several records with equal tag and dims. Source: MindSpore 2.10, ``train/serialization.py``
and ``checkpoint.proto``.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from orchestrator.checkpoints.tensor import (
    ITEM_SIZE,
    TEXT,
    FileIndex,
    FileLayout,
    Interned,
    NewTensor,
    Segment,
    StoredTensor,
)
from orchestrator.checkpoints.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WireError,
    bytes_field,
    bytes_header,
    read_varint,
    signed,
    varint_field,
)
from orchestrator.errors import CheckpointError

SLICE_BYTES = 512 << 20
"""MindSpore cuts a tensor's content into records of at most this many bytes."""

CRC_MARK = b"crc_num"
CRC_TRAILER_BYTES = len(CRC_MARK) + 10

_CIPHERS = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
_WINDOW = 8 << 10  # a record's header, or several small records
_TWO_VARINTS = 20
_MAX_NAME = 16 << 10
_MAX_AXES = 32


def index_ckpt(path: Path, interned: Optional[Interned] = None) -> FileIndex:
    """Find every tensor of a ``.ckpt`` file, reading only the record headers.

    Raises CheckpointError for a file that is empty, encrypted, truncated or corrupt; the message
    names the file, the offset and the last good parameter. No length field of the file is
    trusted: nothing larger than 16 KiB is ever read.
    """
    shared = interned or Interned()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}") from error
    try:
        size = os.fstat(descriptor).st_size
        window = _Window(descriptor, size)
        _refuse_other_content(path, window)
        crc = _crc_trailer(window)
        end = size if crc is None else size - CRC_TRAILER_BYTES
        tensors = _joined(path, _records(path, window, end, shared))
    except WireError as error:
        raise CheckpointError(f"{path} changed while it was being read") from error
    finally:
        os.close(descriptor)
    return FileIndex(path, "ckpt", size, tensors, crc)


def ckpt_layout(tensors: Sequence[NewTensor], *, crc: bool = False) -> FileLayout:
    """Lay out a ``.ckpt`` file as MindSpore's synchronous save writes it.

    With ``crc`` room is left at the end for ``crc_trailer``.
    """
    offset = 0
    fixed: List[Tuple[int, bytes]] = []
    segments: Dict[str, Tuple[Segment, ...]] = {}
    for tensor in tensors:
        own: List[Segment] = []
        for start in range(0, max(tensor.nbytes, 1), SLICE_BYTES):
            length = min(SLICE_BYTES, tensor.nbytes - start)
            header = _record_header(tensor, length)
            fixed.append((offset, header))
            own.append(Segment(offset + len(header), length))
            offset += len(header) + length
        segments[tensor.name] = tuple(own)
    return FileLayout(offset + (CRC_TRAILER_BYTES if crc else 0), tuple(fixed), segments)


def crc_trailer(crc: int) -> bytes:
    """The last 17 bytes of a file with a checksum: a mark, and the CRC32 of all before it."""
    return CRC_MARK + crc.to_bytes(10, "big")


class _Record(NamedTuple):
    offset: int
    name: str
    dtype: str
    dims: Tuple[int, ...]
    content: Segment


class _Window:
    """Small reads at any offset of a large file, through one cached window."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        self._start = 0
        self._data = b""

    def read(self, offset: int, length: int) -> bytes:
        at = self._have(offset, length)
        return self._data[at : at + length]

    def fields(self, offset: int, end: int) -> Iterator[Tuple[int, int, int, int]]:
        """``(field number, wire type, offset, length)`` of each field's value; for a varint the
        value itself stands in place of its offset."""
        while offset < end:
            start = offset
            try:
                first = at = self._have(offset, min(_TWO_VARINTS, end - offset))
                data = self._data
                key, at = (data[at], at + 1) if data[at] < 0x80 else read_varint(data, at)
                number, kind = key >> 3, key & 7
                if number == 0 or kind not in (VARINT, BYTES, FIXED32, FIXED64):
                    raise WireError("not a record", start)
                if kind in (VARINT, BYTES):
                    value, at = read_varint(data, at)
                else:
                    value = 4 if kind == FIXED32 else 8
            except WireError as error:
                raise WireError(error.reason, start) from error
            offset += at - first
            if offset > end:
                raise WireError("number cut off", start)
            if kind == VARINT:
                yield number, kind, value, 0
                continue
            if value > end - offset:
                raise WireError(f"{value} bytes announced, {end - offset} left", start)
            yield number, kind, offset, value
            offset += value

    def _have(self, offset: int, length: int) -> int:
        """Make sure that the window holds these bytes; index of the first."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            self._data = os.pread(self._descriptor, max(length, _WINDOW), offset)
            self._start, at = offset, 0
            if len(self._data) < length:
                raise WireError(f"{length} bytes announced, {len(self._data)} left", offset)
        return at


def _refuse_other_content(path: Path, window: _Window) -> None:
    if window.size == 0:
        raise CheckpointError(f"{path} is empty", hint="the save was interrupted; use another step")
    head = window.read(0, min(4, window.size))
    cipher = _CIPHERS.get(int.from_bytes(head, "little")) or _CIPHERS.get(
        int.from_bytes(head, "big")
    )
    if cipher:
        raise CheckpointError(
            f"{path} is encrypted ({cipher}); glm2-orch does not decrypt",
            hint="load it in MindSpore with dec_key and save it again without enc_key",
        )


def _crc_trailer(window: _Window) -> Optional[int]:
    if window.size < CRC_TRAILER_BYTES:
        return None
    tail = window.read(window.size - CRC_TRAILER_BYTES, CRC_TRAILER_BYTES)
    if not tail.startswith(CRC_MARK):
        return None
    return int.from_bytes(tail[len(CRC_MARK) :], "big")


def _records(path: Path, window: _Window, end: int, shared: Interned) -> Iterator[_Record]:
    last = ""
    offset = 0
    try:
        for number, kind, start, length in window.fields(0, end):
            if number != 1 or kind != BYTES:
                raise WireError(f"field {number} where a record should begin", offset)
            record = _record(path, window, offset, start, start + length, shared)
            yield record
            last = record.name
            offset = start + length
    except WireError as error:
        cut = "announced" in error.reason or "cut off" in error.reason
        what = "is truncated" if cut else "is corrupt"
        after = f"last good parameter: {last}" if last else "no good parameter before it"
        raise CheckpointError(
            f"{path} {what} at offset {error.offset} of {window.size}: {error.reason} ({after})",
            hint="collect this rank's file again, or use another step",
        ) from error


def _record(
    path: Path, window: _Window, offset: int, start: int, end: int, shared: Interned
) -> _Record:
    name: Optional[str] = None
    tensor: Optional[Tuple[int, int]] = None
    for number, kind, at, length in window.fields(start, end):
        if number == 1 and kind == BYTES:
            name = shared.name(_text(window, at, length, "name"))
        elif number == 2 and kind == BYTES:
            tensor = (at, at + length)
        elif number == 3:
            raise CheckpointError(
                f"{path} holds the map parameter {name!r}; hash tables cannot be merged",
                hint="export the table with MindSpore first",
            )
        else:
            raise WireError(f"field {number} inside a record", offset)
    if name is None or tensor is None:
        raise WireError("record without name or tensor", offset)
    dtype: Optional[str] = None
    dims: List[int] = []
    content: Optional[Segment] = None
    for number, kind, at, length in window.fields(*tensor):
        if number == 1 and kind == VARINT:
            dims.append(signed(at))
        elif number == 1 and kind == BYTES:
            dims.extend(_packed(window, at, length))
        elif number == 2 and kind == BYTES:
            dtype = _text(window, at, length, "type")
        elif number == 3 and kind == BYTES:
            content = Segment(at, length)
        else:
            raise WireError(f"field {number} inside tensor {name!r}", offset)
        if len(dims) > _MAX_AXES:
            raise WireError(f"more than {_MAX_AXES} axes in tensor {name!r}", offset)
    if dtype is None or content is None:
        raise WireError(f"tensor {name!r} without type or content", offset)
    if dtype != TEXT and dtype not in ITEM_SIZE:
        raise WireError(f"tensor {name!r} of unknown type {dtype!r}", offset)
    if any(dim < 0 for dim in dims):
        raise WireError(f"tensor {name!r} with a negative dimension {dims}", offset)
    return _Record(offset, name, shared.name(dtype), shared.shape(tuple(dims)), content)


def _text(window: _Window, offset: int, length: int, what: str) -> str:
    if length > _MAX_NAME:
        raise WireError(f"{what} of {length} bytes", offset)
    try:
        text = window.read(offset, length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"{what} that is not UTF-8", offset) from error
    if not text or not text.isprintable():
        raise WireError(f"unprintable {what}", offset)
    return text


def _packed(window: _Window, offset: int, length: int) -> List[int]:
    if length > _MAX_AXES * 10:
        raise WireError(f"{length} bytes of dimensions", offset)
    data = window.read(offset, length)
    dims: List[int] = []
    position = 0
    while position < length:
        value, position = read_varint(data, position)
        dims.append(signed(value))
    return dims


def _joined(path: Path, records: Iterator[_Record]) -> Dict[str, StoredTensor]:
    tensors: Dict[str, StoredTensor] = {}
    group: List[_Record] = []
    for record in records:
        if group and record.name != group[0].name:
            _close_group(path, group, tensors)
            group = []
        group.append(record)
    if group:
        _close_group(path, group, tensors)
    return tensors


def _close_group(path: Path, group: List[_Record], tensors: Dict[str, StoredTensor]) -> None:
    first = group[0]
    if first.name in tensors:
        raise CheckpointError(
            f"{path} holds parameter {first.name} twice (again at offset {first.offset})",
            hint="MindSpore would silently use the last one; save the checkpoint again",
        )
    for record in group[1:]:
        if record[2:4] != first[2:4]:
            raise CheckpointError(
                f"{path}: slices of {first.name} disagree at offset {record.offset}: "
                f"expected {first.dtype}{list(first.dims)}, "
                f"found {record.dtype}{list(record.dims)}"
            )
    found = sum(record.content.length for record in group)
    shape = first.dims
    if first.dtype == TEXT:
        shape = ()
        fits = found % 4 == 0
        expected = "whole UTF-32 characters"
    else:
        item = ITEM_SIZE[first.dtype]
        if shape == (0,) and found == item:
            shape = ()  # so older versions write a scalar
        fits = found == item * prod(shape)
        expected = f"{item * prod(shape)} bytes for {first.dtype}{list(first.dims)}"
    if not fits:
        hint = "collect this rank's file again, or use another step"
        if len(group) > 1 and found == len(group) * item * prod(shape):
            hint = "the parameter was written more than once"
        raise CheckpointError(
            f"{path}: parameter {first.name} at offset {first.offset}: "
            f"expected {expected}, found {found} bytes",
            hint=hint,
        )
    segments = tuple(record.content for record in group)
    tensors[first.name] = StoredTensor(first.name, first.dtype, shape, segments)


def _record_header(tensor: NewTensor, length: int) -> bytes:
    dims = (0,) if tensor.dtype == TEXT else tensor.shape
    inner = b"".join(varint_field(1, dim) for dim in dims)
    inner += bytes_field(2, tensor.dtype.encode()) + bytes_header(3, length)
    tag = bytes_field(1, tensor.name.encode())
    tensor_header = bytes_header(2, len(inner) + length)
    return bytes_header(1, len(tag) + len(tensor_header) + len(inner) + length) + (
        tag + tensor_header + inner
    )
