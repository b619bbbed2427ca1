"""A new file that appears under its name only when it is complete, and on the disk."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Iterator, Tuple

from orchestrator.errors import Busy, CheckpointError

_SYNC_FILE_RANGE_WRITE = 2
_WRITEBACK_EVERY_S = 0.005
_WORTH_A_THREAD = 64 << 20


@contextmanager
def new_file(path: Path, size: int, *, durable: bool = True) -> Iterator[int]:
    """A descriptor of a file of ``size`` bytes that appears as ``path`` when the block ends well,
    and not at all otherwise. ``durable``: it is on the disk by then; else the kernel writes it
    later, and what a host that loses its power leaves of it is not said.

    Raises CheckpointError when the disk has no room or the folder cannot be written, Busy when
    another process is writing the same file.
    """
    part = part_path(path)
    descriptor = _locked(part, path)
    try:
        try:
            _reserve(descriptor, path, size)
            with _early_writeback(descriptor, size) if durable else nullcontext():
                yield descriptor
            if durable:
                os.fsync(descriptor)
            os.rename(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(path.parent)
    finally:
        os.close(descriptor)


@contextmanager
def resumed_file(path: Path, part: Path, size: int, *, notes: Path) -> Iterator[Tuple[int, bool]]:
    """As ``new_file``, but the bytes are kept in ``part`` when the block ends badly, and found
    there again: also says whether they are. ``notes``, a file about what they are, is removed
    when they are not."""
    descriptor = _locked(part, path)
    try:
        try:
            found = os.fstat(descriptor).st_size == size
            if not found:
                notes.unlink(missing_ok=True)
                _reserve(descriptor, path, size)
            with _early_writeback(descriptor, size):
                yield descriptor, found
            os.fsync(descriptor)
            os.rename(part, path)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
        _sync_folder(path.parent)
    finally:
        os.close(descriptor)


def part_path(path: Path) -> Path:
    """Where the bytes of a new file lie until it is complete."""
    return path.with_name(f".{path.name}.part")


def write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        put = os.pwrite(descriptor, data, offset)
        data = data[put:]
        offset += put


def write_small(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a small file, all or nothing."""
    with new_file(path, len(data), durable=durable) as descriptor:
        write(descriptor, memoryview(data), 0)


def _locked(part: Path, path: Path) -> int:
    """The open part of ``path``, which nobody else has. Busy where somebody does, or just had it
    and has given it its name."""
    descriptor = _opened(part)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(part).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    raise Busy(f"another process is writing {path}")


def _opened(part: Path) -> int:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        return os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {part}: {error.strerror}", hint="choose another folder"
        ) from error


def _reserve(descriptor: int, path: Path, size: int) -> None:
    """Take all the room at once: a full disk is found now, and writing is faster."""
    os.ftruncate(descriptor, 0)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise CheckpointError(
            f"{path.parent} has {free} bytes free, {path.name} needs {size}",
            hint="free some space, or write to another disk",
        )
    if size:
        os.posix_fallocate(descriptor, 0, size)


@contextmanager
def _early_writeback(descriptor: int, size: int) -> Iterator[None]:
    """Let the disk begin while the file is still being written: the fsync at the end is short.

    Only a hint; where the C library or the file system has no such call, fsync does it all.
    """
    hint = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if hint is None or size < _WORTH_A_THREAD:
        yield
        return
    stop = threading.Event()
    whole = ctypes.c_int64(0)

    def run() -> None:
        while not stop.wait(_WRITEBACK_EVERY_S):
            hint(descriptor, whole, whole, _SYNC_FILE_RANGE_WRITE)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
