"""Receive files on a host: checked by SHA-256, written whole or not at all.

The controller sends the source of this module, and then the files, to the standard input of
``python -c BOOTSTRAP SIZE DEST`` (see ``orchestrator/transport/files.py``): nothing has to be
installed on the host. Standard library only, Python 3.7 and newer.

Input: one line of JSON, ``{"files": [{"path", "size", "mode"}, ...]}``, then for each file its
bytes and their SHA-256 as 64 hexadecimal digits. Output: one line of JSON, either
``{"sha256": {path: digest}}`` with exit status 0, or
``{"error": {"code", "message", "hint"}}`` with exit status 4.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from typing import Any, BinaryIO, Dict, List, Tuple

Entry = Dict[str, Any]

CHUNK = 1 << 20
HINTS = {
    errno.EACCES: "give the ssh user write permission there, or choose another workdir",
    errno.EPERM: "give the ssh user write permission there, or choose another workdir",
    errno.EROFS: "remount the file system for writing, or choose another workdir",
    errno.ENOSPC: "free some space there, or choose another workdir",
    errno.EDQUOT: "free some of the user's quota there, or choose another workdir",
    errno.ENOTDIR: "a file stands where a folder is needed: remove it, or choose another workdir",
    errno.EISDIR: "a folder stands where a file is needed: remove it",
}


class Refused(Exception):
    """The files cannot be written as asked; nothing of them was left behind."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def receive(stream: BinaryIO, dest: str) -> Dict[str, str]:
    """Write the files that ``stream`` carries below the folder ``dest``; return {path: SHA-256}.

    Missing folders are made (mode 0700). Every file is first written beside its place and
    flushed to disk; only when all have arrived whole are they renamed. On any failure the
    temporary files and the folders made here are removed again. Raises Refused.
    """
    made: List[str] = []
    written: List[Tuple[str, str]] = []
    where = dest
    try:
        entries = _read_manifest(stream)
        _make_folder(dest, made)
        _check_space(dest, sum(entry["size"] for entry in entries))
        digests = {}
        for number, entry in enumerate(entries):
            where = os.path.join(dest, entry["path"])
            _make_folder(os.path.dirname(where), made)
            _check_inside(where, dest)
            name = ".put-{}-{}".format(os.getpid(), number)
            temporary = os.path.join(os.path.dirname(where), name)
            written.append((temporary, where))
            digests[entry["path"]] = _write(stream, temporary, entry)
        for temporary, where in written:
            os.replace(temporary, where)
        where = dest
        for folder in sorted({os.path.dirname(path) for _, path in written}):
            _flush_folder(folder)
        return digests
    except BaseException as failure:
        _undo(made, written)
        if isinstance(failure, OSError):
            reason = os.strerror(failure.errno) if failure.errno else str(failure)
            raise Refused(
                "cannot write {}: {}".format(where, reason), HINTS.get(failure.errno or 0, "")
            ) from failure
        raise


def main() -> int:
    answer: Dict[str, Any]
    try:
        answer, status = {"sha256": receive(sys.stdin.buffer, sys.argv[2])}, 0
    except Refused as refusal:
        answer = {
            "error": {
                "code": "host-not-ready",
                "message": refusal.message,
                "hint": refusal.hint,
            }
        }
        status = 4
    print(json.dumps(answer))
    return status


def _read_manifest(stream: BinaryIO) -> List[Entry]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise Refused("the connection ended before the list of files had arrived")
    entries: List[Entry] = json.loads(line.decode("ascii"))["files"]
    paths = [entry["path"] for entry in entries]
    for path in paths:
        parts = path.split("/")
        if path.startswith("/") or "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
            raise Refused("the path {!r} would leave the folder".format(path))
    if len(set(paths)) != len(paths):
        raise Refused("the same path is sent twice")
    return entries


def _make_folder(path: str, made: List[str]) -> None:
    """Like os.makedirs, but remembers what it made."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_folder(parent, made)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.isdir(path):
            return  # made by someone else in the meantime: theirs to remove
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    made.append(path)


def _check_space(dest: str, needed: int) -> None:
    """Refuse before the transfer rather than in the middle of it."""
    free = os.statvfs(dest)
    available = free.f_bavail * free.f_frsize
    if needed > available:
        raise Refused(
            "cannot write {}: {} ({:,} bytes needed, {:,} free)".format(
                dest, os.strerror(errno.ENOSPC), needed, available
            ),
            HINTS[errno.ENOSPC],
        )


def _check_inside(path: str, dest: str) -> None:
    """A link inside ``dest`` must not lead the file out of it."""
    root = os.path.realpath(dest)
    folder = os.path.realpath(os.path.dirname(path))
    if os.path.commonpath([root, folder]) != root:
        raise Refused("the path {} would leave the folder {}".format(path, dest))
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def _write(stream: BinaryIO, temporary: str, entry: Entry) -> str:
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        left = entry["size"]
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise Refused("the connection ended in the middle of {}".format(entry["path"]))
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        expected = stream.read(64).decode("ascii", "replace")
        if digest.hexdigest() != expected:
            raise Refused(
                "{} arrived damaged: SHA-256 {} instead of {}".format(
                    entry["path"], digest.hexdigest(), expected or "(none)"
                )
            )
        file.flush()
        os.fchmod(file.fileno(), entry["mode"])
        os.fsync(file.fileno())
    return expected


def _flush_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as failure:
        # Some network file systems cannot flush a folder; the files themselves are on disk.
        if failure.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _undo(made: List[str], written: List[Tuple[str, str]]) -> None:
    for temporary, _ in written:
        with contextlib.suppress(OSError):  # not made yet, or renamed already
            os.unlink(temporary)
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # something else is in it by now
            os.rmdir(folder)


if __name__ == "__main__":
    sys.exit(main())
