"""PyTorch's ``.bin`` and ``.pth``: find the tensors of a state dict without PyTorch.

A file of ``torch.save`` (1.6 and newer) is a zip archive, not compressed: ``data.pkl`` is a
pickle of the dict, in which each tensor is ``_rebuild_tensor_v2(storage, offset, size, stride,
…)``, and ``data/KEY`` are the bytes of a storage. The pickle is read with the few names below
and no other, so that a file can only describe tensors and never run code: the rule of
``torch.load(weights_only=True)``. Source: PyTorch 2.13, ``torch/serialization.py``.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, NamedTuple, Tuple

from glm2.errors import CheckpointError
from glm2.formats.tensor import ITEM_SIZE, StoredTensor

_MAX_PICKLE = 64 << 20
_MAX_AXES = 32
_STORAGES = {
    "BoolStorage": "bool", "CharStorage": "int8", "ByteStorage": "uint8", "ShortStorage": "int16",
    "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "IntStorage": "int32",
    "FloatStorage": "float32", "LongStorage": "int64", "DoubleStorage": "float64",
}  # fmt: skip
# What a damaged pickle can end in, besides what ours raises.
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
    OverflowError, MemoryError, RecursionError, ImportError,
)  # fmt: skip
# What zipfile ends in when an archive is cut off or damaged.
_NO_ARCHIVE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError,
    zlib.error, struct.error,
)  # fmt: skip


def index_torch(file: Path) -> Dict[str, StoredTensor]:
    """Every tensor of a state dict by name; only its description is read.

    CheckpointError for a file that is no archive of ``torch.save``, that is cut off, that holds
    anything but a dict of tensors, or whose pickle names a function: that is not called.
    """
    with file.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return _index(file, stream, archive)
        except _NO_ARCHIVE as error:
            raise CheckpointError(
                f"{file} is no complete file of torch.save: {error}",
                hint="copy the file again; what PyTorch before 1.6 wrote, save with a newer one",
            ) from error


class _Storage(NamedTuple):
    dtype: str
    key: str
    items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]


class _Refused(Exception):
    """The pickle asks for something that no state dict needs."""


def _index(file: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> Dict[str, StoredTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or entries[pickles[0]].file_size > _MAX_PICKLE:
        raise CheckpointError(
            f"{file} is a zip archive, but not one of torch.save: it has no data.pkl",
            hint="give the weights that torch.save wrote",
        )
    folder = pickles[0][: -len("data.pkl")]
    order = entries.get(f"{folder}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise CheckpointError(f"{file} was written on a big-endian machine")
    try:
        state = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    except _Refused as error:
        raise CheckpointError(
            f"{file} is refused: {error}",
            hint="weights need no code; get them from a source that you trust, as safetensors",
        ) from None
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{file} is damaged: its description of the tensors cannot be read",
            hint="copy the file again",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds no dict of tensors, but {type(state).__name__}")
    return {
        str(name): _stored(file, str(name), tensor, stream, entries, folder)
        for name, tensor in state.items()
    }


class _Unpickler(pickle.Unpickler):
    """Reads a state dict; every name but those of ``_ALLOWED`` and of storages is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _Refused(f"its pickle names {module}.{name}, which is not part of a state dict")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, items = pid
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if type(items) is not int or items < 0:
            raise pickle.UnpicklingError("a storage without size")
        return _Storage(dtype, key, items)


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_gradient_and_hooks: Any
) -> _Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > _MAX_AXES:
        raise pickle.UnpicklingError("a tensor without storage")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise pickle.UnpicklingError("a tensor with bad numbers")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_gradient_and_hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise pickle.UnpicklingError("a parameter without tensor")
    return data


_ALLOWED: Dict[Tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


def _stored(
    file: Path,
    name: str,
    tensor: Any,
    stream: BinaryIO,
    entries: Dict[str, zipfile.ZipInfo],
    folder: str,
) -> StoredTensor:
    if not isinstance(tensor, _Tensor):
        raise CheckpointError(
            f"{file}: {name} is no tensor, but {type(tensor).__name__}",
            hint="save the state dict alone: torch.save(model.state_dict(), file)",
        )
    storage, shape = tensor.storage, tensor.shape
    item = ITEM_SIZE[storage.dtype]
    entry = entries.get(f"{folder}data/{storage.key}")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, tensor.strides))
    if entry is None or entry.file_size != storage.items * item:
        raise CheckpointError(f"{file} is damaged: the bytes of {name} are not there")
    if prod(shape) and last >= storage.items:
        raise CheckpointError(f"{file} is damaged: {name} is larger than its storage")
    begin = _content_offset(file, stream, entry) + tensor.offset * item
    found = StoredTensor(name, storage.dtype, shape, file, ((begin, item * prod(shape)),))
    if not prod(shape) or _in_c_order(tensor):
        return found
    length = (last - tensor.offset + 1) * item
    return replace(found, segments=((begin, length),), strides=tensor.strides)


def _in_c_order(tensor: _Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _content_offset(file: Path, stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its own header, whose length only itself knows."""
    stream.seek(entry.header_offset)
    header = stream.read(30)
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    if len(header) != 30 or header[:4] != b"PK\x03\x04" or not stored or entry.flag_bits & 1:
        raise CheckpointError(
            f"{file} is damaged or compressed at {entry.filename}",
            hint="save it again with torch.save",
        )
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    begin = entry.header_offset + 30 + lengths
    if begin + entry.file_size > stream.seek(0, io.SEEK_END):
        raise CheckpointError(f"{file} is cut off at {entry.filename}", hint="copy the file again")
    return begin
