"""safetensors files: index one from its header; lay out a new one.

A file is eight bytes (little-endian length of the header), a JSON header, and the tensors without
holes. Reference: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.tensor import (
    ITEM_SIZE,
    FileIndex,
    FileLayout,
    Interned,
    NewTensor,
    Segment,
    StoredTensor,
    tensor_bytes,
)
from orchestrator.errors import CheckpointError

MAX_HEADER = 100_000_000
"""The reference implementation refuses a longer header."""

_TYPE_OF = {
    "BOOL": "Bool",
    "I8": "Int8",
    "U8": "UInt8",
    "I16": "Int16",
    "U16": "UInt16",
    "F16": "Float16",
    "BF16": "BFloat16",
    "I32": "Int32",
    "U32": "UInt32",
    "F32": "Float32",
    "I64": "Int64",
    "U64": "UInt64",
    "F64": "Float64",
}
_NAME_OF = {ours: theirs for theirs, ours in _TYPE_OF.items()}


def index_safetensors(path: Path, interned: Optional[Interned] = None) -> FileIndex:
    """Find every tensor of a safetensors file, reading only its header.

    Raises CheckpointError, naming the file and what is wrong, for a file that is truncated or
    whose header is corrupt: bad JSON, unknown types, overlapping or missing bytes.
    """
    shared = interned or Interned()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _corrupt(path, f"it has {size} bytes, too few for a header")
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, MAX_HEADER):
                raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
            header = _header(path, file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    metadata = _metadata(path, header.pop("__metadata__", {}))
    tensors = [_tensor(path, name, entry, 8 + length, shared) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.segments[0])
    _check_no_holes(path, tensors, 8 + length, size)
    crc = metadata.get("crc_num", "")
    return FileIndex(
        path,
        "safetensors",
        size,
        {tensor.name: tensor for tensor in tensors},
        int(crc) if crc.isdecimal() and crc.isascii() and len(crc) <= 10 else None,
        metadata,
    )


def safetensors_layout(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> FileLayout:
    """Lay out a safetensors file; wider element types come first so that each is aligned.

    Raises CheckpointError for a type that the format does not have.
    """
    header: Dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: Dict[str, int] = {}
    offset = 0
    for tensor in sorted(tensors, key=lambda tensor: -ITEM_SIZE[tensor.dtype]):
        if tensor.dtype not in _NAME_OF:
            raise CheckpointError(
                f"parameter {tensor.name} is {tensor.dtype}, which safetensors cannot hold",
                hint="write a .ckpt instead",
            )
        offsets[tensor.name] = offset
        header[tensor.name] = {
            "dtype": _NAME_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    segments = {
        tensor.name: (Segment(base + offsets[tensor.name], tensor.nbytes),) for tensor in tensors
    }
    return FileLayout(base + offset, ((0, len(text).to_bytes(8, "little") + text),), segments)


def _header(path: Path, text: bytes) -> Dict[str, object]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    return header


def _without_duplicates(pairs: List[Tuple[str, object]]) -> Dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return found


def _metadata(path: Path, value: object) -> Dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _corrupt(path, "its __metadata__ is not a map of texts")
    return value


def _tensor(path: Path, name: str, entry: object, base: int, shared: Interned) -> StoredTensor:
    if not name or not name.isprintable():
        raise _corrupt(path, f"unprintable parameter name {name!r}")
    if not isinstance(entry, dict):
        raise _corrupt(path, f"the entry of {name} is not an object")
    dtype = _TYPE_OF.get(str(entry.get("dtype")))
    if dtype is None:
        raise _corrupt(path, f"parameter {name} has unknown type {entry.get('dtype')!r}")
    shape = _naturals(path, name, entry.get("shape"))
    offsets = _naturals(path, name, entry.get("data_offsets"))
    if len(offsets) != 2 or offsets[1] < offsets[0]:
        raise _corrupt(path, f"parameter {name} has data_offsets {list(offsets)}")
    found = offsets[1] - offsets[0]
    expected = tensor_bytes(dtype, shape)
    if found != expected:
        raise _corrupt(
            path, f"parameter {name} {dtype}{list(shape)} needs {expected} bytes, found {found}"
        )
    segment = Segment(base + offsets[0], found)
    return StoredTensor(shared.name(name), shared.name(dtype), shared.shape(shape), (segment,))


def _naturals(path: Path, name: str, value: object) -> Tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 32:
        raise _corrupt(path, f"parameter {name} has no list of at most 32 numbers: {value!r:.80}")
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        raise _corrupt(path, f"parameter {name} has a bad number in {value!r:.80}")
    return tuple(value)


def _check_no_holes(path: Path, tensors: List[StoredTensor], base: int, size: int) -> None:
    position = base
    last = "the header"
    for tensor in tensors:
        start, length = tensor.segments[0]
        if start != position:
            raise _corrupt(path, f"parameter {tensor.name} does not follow {last}")
        position, last = start + length, tensor.name
        if position > size:
            raise CheckpointError(
                f"{path} is truncated at offset {size} of {position}, in parameter {tensor.name}",
                hint="collect this rank's file again, or use another step",
            )
    if position != size:
        raise _corrupt(path, f"{size - position} bytes follow its last parameter")


def _corrupt(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is corrupt: {why}", hint="collect this rank's file again, or use another step"
    )
