"""MindSpore's ``.ckpt``: find the tensors of a file, or write a file.

A file is a run of records ``0A len { 0A len name | 12 len { (08 dim)* | 12 len type | 1A len
content } }``, as a whole one proto2 message. A tensor above 512 MiB is cut into several records
with equal name and dims. Source: MindSpore 2.10, ``train/serialization.py``, ``checkpoint.proto``.
"""

from __future__ import annotations

import os
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, Dict, Iterable, Iterator, List, Tuple

from glm2.errors import CheckpointError
from glm2.formats.tensor import BLOCK, ITEM_SIZE, Content, StoredTensor, nbytes, regroup

SLICE = 512 << 20
"""MindSpore cuts a tensor's content into records of at most this many bytes."""

_TYPE = {
    "Bool": "bool", "Int8": "int8", "UInt8": "uint8", "Int16": "int16", "UInt16": "uint16",
    "Float16": "float16", "BFloat16": "bfloat16", "Int32": "int32", "UInt32": "uint32",
    "Float32": "float32", "Int64": "int64", "UInt64": "uint64", "Float64": "float64",
}  # fmt: skip
_NAME_OF_TYPE = {ours: theirs for theirs, ours in _TYPE.items()}
_CIPHERS = (0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA)
_CRC_MARK = b"crc_num"
_CRC_TRAILER = len(_CRC_MARK) + 10
_MAX_TEXT = 16 << 10
_MAX_AXES = 32
_VARINT, _BYTES = 0, 2


def index_ckpt(file: Path) -> Dict[str, StoredTensor]:
    """Every tensor of a ``.ckpt`` file by name; only the headers are read.

    CheckpointError for a file that is empty, encrypted, cut off or damaged.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        end = _without_crc(file, stream, size)
        found: Dict[str, StoredTensor] = {}
        last = ""
        try:
            for number, kind, begin, length in _fields(stream, 0, end):
                if (number, kind) != (1, _BYTES):
                    raise _Damaged(f"field {number} where a record should begin")
                part = _record(file, stream, begin, begin + length)
                known = found.get(part.name)
                if known is None:
                    found[part.name] = part
                elif part.name == last and (part.dtype, part.shape) == (known.dtype, known.shape):
                    segments = known.segments + part.segments
                    found[part.name] = StoredTensor(
                        part.name, part.dtype, part.shape, file, segments
                    )
                else:
                    raise _Damaged(f"parameter {part.name} is there twice")
                last = part.name
        except _Damaged as error:
            after = f", behind parameter {last}" if last else ""
            raise CheckpointError(
                f"{file} is cut off or damaged at byte {stream.tell()} of {size}{after}: {error}",
                hint="copy the file again",
            ) from None
    for tensor in found.values():
        _check_size(file, tensor)
    return found


def write_ckpt(out: BinaryIO, tensors: Iterable[Content]) -> None:
    """Write a file as MindSpore's ``save_checkpoint`` does, byte for byte."""
    for tensor in tensors:
        total = nbytes(tensor)
        sizes = [min(SLICE, total - at) for at in range(0, max(total, 1), SLICE)]
        for size, blocks in zip(sizes, regroup(tensor.blocks(), sizes)):
            out.write(_record_header(tensor, size))
            for block in blocks:
                out.write(block)


class _Damaged(Exception):
    """The bytes are no ``.ckpt``."""


def _without_crc(file: Path, stream: BinaryIO, size: int) -> int:
    """Where the records end; a checksum behind them is compared."""
    head = stream.read(4)
    if not head:
        raise CheckpointError(f"{file} is empty", hint="copy the file again")
    if {int.from_bytes(head, "little"), int.from_bytes(head, "big")} & set(_CIPHERS):
        raise CheckpointError(
            f"{file} is encrypted",
            hint="load it in MindSpore with dec_key and save it again without enc_key",
        )
    stream.seek(max(0, size - _CRC_TRAILER))
    tail = stream.read(_CRC_TRAILER)
    if not tail.startswith(_CRC_MARK):
        return size
    end = size - _CRC_TRAILER
    stream.seek(0)
    crc = 0
    for at in range(0, end, BLOCK):
        crc = zlib.crc32(stream.read(min(BLOCK, end - at)), crc)
    if crc != int.from_bytes(tail[len(_CRC_MARK) :], "big"):
        raise CheckpointError(
            f"{file} does not have the checksum that it carries", hint="copy the file again"
        )
    return end


def _record(file: Path, stream: BinaryIO, begin: int, end: int) -> StoredTensor:
    name, tensor = "", (0, 0)
    for number, kind, at, length in _fields(stream, begin, end):
        if (number, kind) == (1, _BYTES):
            name = _text(stream, at, length)
        elif (number, kind) == (2, _BYTES):
            tensor = (at, at + length)
        else:
            raise _Damaged(f"field {number} inside a record")
    dims: List[int] = []
    dtype, content = "", None
    for number, kind, at, length in _fields(stream, *tensor):
        if (number, kind) == (1, _VARINT):
            dims.append(at)
        elif (number, kind) == (1, _BYTES):
            dims += _packed(stream, at, length)
        elif (number, kind) == (2, _BYTES):
            dtype = _text(stream, at, length)
        elif (number, kind) == (3, _BYTES):
            content = (at, length)
        else:
            raise _Damaged(f"field {number} inside a tensor")
        if len(dims) > _MAX_AXES:
            raise _Damaged(f"more than {_MAX_AXES} axes")
    if not name or not dtype or content is None:
        raise _Damaged("a record without name, type or content")
    return StoredTensor(name, _TYPE.get(dtype, dtype), tuple(dims), file, (content,))


def _fields(stream: BinaryIO, begin: int, end: int) -> Iterator[Tuple[int, int, int, int]]:
    """Number, kind, offset and length of each field; for a number itself in place of its offset."""
    while begin < end:
        stream.seek(begin)
        key, value = _varint(stream), _varint(stream)
        number, kind = key >> 3, key & 7
        begin = stream.tell()
        if not number or kind not in (_VARINT, _BYTES) or begin > end:
            raise _Damaged("no field where one should begin")
        if kind == _VARINT:
            yield number, kind, value, 0
            continue
        if value > end - begin:
            raise _Damaged(f"{value} bytes are announced, {end - begin} are left")
        yield number, kind, begin, value
        begin += value


def _varint(stream: BinaryIO) -> int:
    value = 0
    for place in range(10):
        byte = stream.read(1)
        if not byte:
            raise _Damaged("a number is cut off")
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    raise _Damaged("a number of more than ten bytes")


def _packed(stream: BinaryIO, begin: int, length: int) -> Iterator[int]:
    stream.seek(begin)
    while stream.tell() < begin + length:
        yield _varint(stream)


def _text(stream: BinaryIO, begin: int, length: int) -> str:
    if length > _MAX_TEXT:
        raise _Damaged(f"a name of {length} bytes")
    stream.seek(begin)
    try:
        return stream.read(length).decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged("a name that is not UTF-8") from None


def _check_size(file: Path, tensor: StoredTensor) -> None:
    item = ITEM_SIZE.get(tensor.dtype)
    if item is None:
        return  # A text, or a type of which nothing is known: no weight.
    lengths = [length for _, length in tensor.segments]
    # An older MindSpore writes a scalar with dims [0].
    shape = () if tensor.shape == (0,) and lengths == [item] else tensor.shape
    if sum(lengths) != item * prod(shape) or any(length % item for length in lengths):
        raise CheckpointError(
            f"{file}: {tensor.name} {tensor.dtype}{list(shape)} needs {item * prod(shape)} bytes, "
            f"the file has {sum(lengths)}",
            hint="copy the file again",
        )


def _record_header(tensor: Content, length: int) -> bytes:
    inner = b"".join(b"\x08" + _encoded(dim) for dim in tensor.shape)
    inner += _field(2, _NAME_OF_TYPE[tensor.dtype].encode()) + b"\x1a" + _encoded(length)
    tensor_part = b"\x12" + _encoded(len(inner) + length) + inner
    name = _field(1, tensor.name.encode())
    return b"\x0a" + _encoded(len(name) + len(tensor_part) + length) + name + tensor_part


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
