"""safetensors: find the tensors of a file, or write a file.

A file is eight bytes (little-endian length of the header), a JSON header, and the tensors.
Reference: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import BinaryIO, Dict, List, Mapping, Sequence

from glm2.errors import CheckpointError
from glm2.formats.tensor import ITEM_SIZE, Content, StoredTensor, nbytes

_MAX_HEADER = 100_000_000
_TYPE = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16",
    "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "I64": "int64", "U64": "uint64", "F64": "float64",
}  # fmt: skip
_NAME_OF_TYPE = {ours: theirs for theirs, ours in _TYPE.items()}


def index_safetensors(file: Path) -> Dict[str, StoredTensor]:
    """Every tensor of a file by name; only the header is read.

    CheckpointError for a file that is cut off or whose header is damaged.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _damaged(file, f"a header of {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor(file, name, entry, 8 + length, size) for name, entry in header.items()}


def write_safetensors(
    out: BinaryIO, tensors: Sequence[Content], metadata: Mapping[str, str]
) -> None:
    """Write a file; wider types come first, so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda tensor: -ITEM_SIZE[tensor.dtype])
    header: Dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in ordered:
        end = offset + nbytes(tensor)
        header[tensor.name] = {
            "dtype": _NAME_OF_TYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for tensor in ordered:
        for block in tensor.blocks():
            out.write(block)


def _tensor(file: Path, name: str, entry: object, base: int, size: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise _damaged(file, f"the entry of {name} is not an object")
    dtype = str(entry.get("dtype"))
    shape = _naturals(file, name, entry.get("shape"))
    offsets = _naturals(file, name, entry.get("data_offsets"))
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"{name} has the data_offsets {offsets}")
    begin, end = offsets
    ours = _TYPE.get(dtype, dtype)
    if ours in ITEM_SIZE and end - begin != ITEM_SIZE[ours] * prod(shape):
        raise _damaged(file, f"{name} {dtype}{shape} has {end - begin} bytes")
    if base + end > size:
        raise CheckpointError(
            f"{file} is cut off: {name} ends at byte {base + end} of {size}",
            hint="copy the file again",
        )
    return StoredTensor(name, ours, tuple(shape), file, ((base + begin, end - begin),))


def _naturals(file: Path, name: str, value: object) -> List[int]:
    if not isinstance(value, list) or not all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    ):
        raise _damaged(file, f"{name} has no list of numbers where one should be")
    return value


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is no safetensors file: {why}", hint="copy the file again")
