"""Protocol Buffers on the wire: just enough to read and write MindSpore's two kinds of files.

Reference: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Iterator, List, Tuple, Union

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5

_MAX_VARINT = 10
Value = Union[int, bytes]


class WireError(ValueError):
    """The bytes are not a well-formed message; ``offset`` is where that shows."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at offset {offset}")
        self.reason = reason
        self.offset = offset


def read_varint(data: bytes, position: int) -> Tuple[int, int]:
    """Unsigned value of the varint at ``position`` and the position behind it."""
    value = 0
    for index in range(_MAX_VARINT):
        if position + index >= len(data):
            raise WireError("number cut off", position)
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
    raise WireError("number longer than ten bytes", position)


def signed(value: int) -> int:
    """An int32 or int64 field is a varint of its 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def varint(value: int) -> bytes:
    """Encode ``value``; a negative one takes ten bytes, as int32 and int64 do."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return bytes_header(number, len(value)) + value


def bytes_header(number: int, length: int) -> bytes:
    """Key and length that precede ``length`` bytes of field ``number``."""
    return varint(number << 3 | BYTES) + varint(length)


def fields(message: bytes) -> Iterator[Tuple[int, Value]]:
    """``(field number, value)`` of each field in order; groups are refused, as proto files of
    MindSpore have none. Raises WireError."""
    position = 0
    while position < len(message):
        start = position
        key, position = read_varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError("field number 0", start)
        if kind == VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if kind == BYTES:
            length, position = read_varint(message, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise WireError(f"wire type {kind}", start)
        if length > len(message) - position:
            raise WireError(f"field of {length} bytes runs past the end", start)
        yield number, message[position : position + length]
        position += length


def repeated_ints(message: bytes, number: int) -> Tuple[int, ...]:
    """Signed values of a repeated integer field, packed or not."""
    values: List[int] = []
    for found, value in fields(message):
        if found != number:
            continue
        if isinstance(value, int):
            values.append(signed(value))
            continue
        position = 0
        while position < len(value):
            item, position = read_varint(value, position)
            values.append(signed(item))
    return tuple(values)
