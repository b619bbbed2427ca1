"""The CRC32 that a checkpoint file may carry: compute, compare, and join from parts.

MindSpore's ``crc_check=True`` writes it: for ``.ckpt`` over all bytes before the trailer, for
safetensors over each name and content in the order of the names.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Dict, Iterable, List, Sequence

from orchestrator.checkpoints.mindspore_ckpt import CRC_TRAILER_BYTES
from orchestrator.checkpoints.tensor import FileIndex, StoredTensor
from orchestrator.checkpoints.workers import THREADS, share
from orchestrator.errors import CheckpointError

_CHUNK = 1 << 20


def check_file(file: FileIndex, where: str) -> None:
    """Raise CheckpointError when a file's content does not have the checksum that it carries."""
    if file.crc is None:
        return
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = content_crc(descriptor, file)
    finally:
        os.close(descriptor)
    if found != file.crc:
        raise CheckpointError(
            f"{where}: expected CRC32 {file.crc:08x} as the file says, found {found:08x}",
            hint="the file is damaged; collect it again, or use another step",
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path]) -> Dict[Path, str]:
    """SHA-256 of several files, computed at once."""
    # Imported where needed: most merges compute none.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(THREADS) as pool:  # hashlib works without the interpreter's lock
        return dict(zip(paths, pool.map(sha256_of, paths)))


def content_crc(descriptor: int, file: FileIndex) -> int:
    """CRC32 of an open checkpoint by the rule of its format."""
    if file.format == "ckpt":
        trailer = CRC_TRAILER_BYTES if file.crc is not None else 0
        return range_crc(descriptor, 0, file.size - trailer)
    return named_crc(descriptor, file.tensors.values())


def named_crc(descriptor: int, tensors: Iterable[StoredTensor]) -> int:
    """CRC32 over names and contents, in the order of the names.

    MindSpore takes ``bytes(array)`` of each, which for an integer scalar n is n zero bytes.
    """
    crc = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        crc = zlib.crc32(tensor.name.encode(), crc)
        if tensor.shape == () and "Int" in tensor.dtype:
            value = _integer(descriptor, tensor)
            crc = joined_crc(crc, _zeros_crc(value), value)
            continue
        for offset, length in tensor.segments:
            crc = range_crc(descriptor, offset, length, crc)
    return crc


def _integer(descriptor: int, tensor: StoredTensor) -> int:
    offset, length = tensor.segments[0]
    data = os.pread(descriptor, length, offset)
    # MindSpore cannot save a negative one with a checksum.
    return max(0, int.from_bytes(data, "little", signed=tensor.dtype.startswith("Int")))


def _zeros_crc(count: int) -> int:
    """CRC32 of ``count`` zero bytes, by doubling."""
    crc, run, length = 0, zlib.crc32(b"\0"), 1
    while count:
        if count & 1:
            crc = joined_crc(crc, run, length)
        run = joined_crc(run, run, length)
        length *= 2
        count >>= 1
    return crc


def range_crc(descriptor: int, offset: int, length: int, crc: int = 0) -> int:
    """CRC32 of a byte range, continuing from ``crc``."""
    buffer = bytearray(min(_CHUNK, length))
    view = memoryview(buffer)
    while length:
        got = os.preadv(descriptor, [view[: min(_CHUNK, length)]], offset)
        if not got:
            raise CheckpointError("a file ended while its checksum was computed")
        crc = zlib.crc32(view[:got], crc)
        offset += got
        length -= got
    return crc


def parallel_crc(descriptor: int, length: int) -> int:
    """CRC32 of the first ``length`` bytes, computed by several threads."""
    step = max(_CHUNK, -(-length // THREADS))
    parts: Dict[int, int] = {}
    share(
        iter(range(0, length, step)),
        lambda: _RangeWorker(descriptor, length, step, parts),
        total=length,
    )
    crc = 0
    for start in sorted(parts):
        crc = joined_crc(crc, parts[start], min(step, length - start))
    return crc


class _RangeWorker:
    """One thread's ranges; zlib works without the interpreter's lock."""

    def __init__(self, descriptor: int, length: int, step: int, parts: Dict[int, int]) -> None:
        self._descriptor = descriptor
        self._length = length
        self._step = step
        self._parts = parts

    def do(self, start: int) -> int:
        size = min(self._step, self._length - start)
        self._parts[start] = range_crc(self._descriptor, start, size)
        return size

    def close(self) -> None:
        """Nothing is held."""


def joined_crc(first: int, second: int, second_length: int) -> int:
    """CRC32 of two runs of bytes side by side, from the CRC32 of each and the length of the
    second: the first is advanced over that many zero bytes, a power of a linear map."""
    operator = _ONE_ZERO_BYTE
    while second_length:
        if second_length & 1:
            first = _apply(operator, first)
        operator = [_apply(operator, column) for column in operator]
        second_length >>= 1
    return first ^ second


def _apply(operator: List[int], vector: int) -> int:
    """Product of a 32 × 32 bit matrix, given as columns, with a vector of bits."""
    result = 0
    for column in operator:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def _zero_byte(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register


_ONE_ZERO_BYTE = [_zero_byte(1 << bit) for bit in range(32)]
