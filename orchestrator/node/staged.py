"""Staged files of a host: ``<workdir>/staged/<digest>/content/…``, each tree named by its content.

A tree is whole or it is not there. It grows in ``<digest>.partial/``, block by block, each checked
against its SHA-256 before it is written; ``have`` lists the blocks, so that a transfer which was
cut goes on where it was. When all are there, the folder is renamed; its files are read-only then.
``record.json`` keeps their sizes and times: as long as these fit, a later look need not read them.
Standard library, Python 3.7 and newer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

LOCK_S = 3600.0
_POLL_S = 0.2
_RENAME_TRIES = 50
_RENAME_PAUSE_S = 0.01
_OURS = re.compile(r".*/staged/[0-9a-f]{64}/content(/.*)?")


class StageError(Exception):
    """The host cannot take the files; ``hint`` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Damaged(Exception):
    """A block does not have the content that the manifest names."""


class Block(NamedTuple):
    tree: "Tree"
    number: int
    """Place among the blocks of its tree."""
    path: str
    """Of its file, below ``content``."""
    offset: int
    size: int
    sha256: str


class Tree:
    """One tree of files: where it is kept, and its blocks."""

    def __init__(self, staged: str, manifest: Dict[str, Any], block_bytes: int) -> None:
        self.digest = manifest["digest"]
        self.files = manifest["files"]
        text = json.dumps(self.files, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode("ascii")).hexdigest() != self.digest:
            raise StageError("the list of files does not have the digest {}".format(self.digest))
        self.final = os.path.join(staged, self.digest)
        self.partial = self.final + ".partial"
        self.left = 0
        """Blocks that are not there yet; None is missing in a whole tree."""
        self.whole = False
        self.lock = -1
        self.blocks = []  # type: List[Block]
        for file in self.files:
            parts = file["path"].split("/")
            if file["path"].startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
                raise StageError("the path {!r} would leave the folder".format(file["path"]))
            for at, sha256 in enumerate(file["blocks"]):
                offset = at * block_bytes
                size = min(block_bytes, file["size"] - offset)
                self.blocks.append(
                    Block(self, len(self.blocks), file["path"], offset, size, sha256)
                )

    def file(self, path: str) -> str:
        """Where a file of the tree is now."""
        return os.path.join(self.final if self.whole else self.partial, "content", path)


class Store:
    """The trees of one transfer. Blocks are numbered through all of them; safe from threads."""

    def __init__(self, workdir: str, manifests: List[Dict[str, Any]], block_bytes: int) -> None:
        self.staged = os.path.join(workdir, "staged")
        self.trees = [Tree(self.staged, manifest, block_bytes) for manifest in manifests]
        self.blocks = [block for tree in self.trees for block in tree.blocks]
        self._have = set()  # type: Set[int]
        self._changed = threading.Condition()
        self._writing = threading.Lock()

    def open(self, verify: bool, waits: Callable[[str], None]) -> None:
        """Find out what is there. ``verify`` reads all of it. ``waits`` is called when another
        transfer is filling a tree, which is then waited for. Raises StageError."""
        first = {}  # type: Dict[str, int]
        count = 0
        for tree in self.trees:
            first[tree.digest] = count
            count += len(tree.blocks)
        with _disk_errors(self.staged):
            os.makedirs(self.staged, mode=0o700, exist_ok=True)
            # In one order for all transfers, or two could wait for each other's locks.
            for tree in sorted(self.trees, key=lambda tree: tree.digest):
                good = _look(tree, verify, waits)
                tree.left = len(tree.blocks) - len(good)
                self._have.update(first[tree.digest] + number for number in good)
                if not tree.whole and not tree.left:
                    _finish(tree)
        needed = sum(self.blocks[index].size for index in self.missing())
        free = os.statvfs(self.staged)
        available = free.f_bavail * free.f_frsize
        if needed > available:
            raise StageError(
                "no space for the staged files in {}: {:,} bytes needed, {:,} free".format(
                    self.staged, needed, available
                ),
                "free some space there (old trees in this folder can be removed)",
            )

    def missing(self) -> List[int]:
        with self._changed:
            return [index for index in range(len(self.blocks)) if index not in self._have]

    def used(self, places: Dict[str, List[str]]) -> None:
        """Note for ``retention`` that the trees were wanted now, and the links made to them, by
        digest."""
        for tree in self.trees:
            with _disk_errors(tree.final):
                if places.get(tree.digest):
                    _note_places(os.path.join(tree.final, "places.json"), places[tree.digest])
                os.utime(tree.final)

    @property
    def whole(self) -> bool:
        return all(tree.whole for tree in self.trees)

    def wait_for(self, index: int, seconds: float) -> bool:
        """Whether the block is there, within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: index in self._have, seconds)

    def write(self, index: int, data: bytes) -> None:
        """Keep a block that arrived. Raises Damaged, or StageError when it cannot be written."""
        block = self.blocks[index]
        if len(data) != block.size or hashlib.sha256(data).hexdigest() != block.sha256:
            raise Damaged("block {} of {}".format(block.number, block.path))
        tree = block.tree
        with self._writing, _disk_errors(tree.partial):
            if index in self._have:
                return
            path = tree.file(block.path)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
            _write_at(path, flags, data, block.offset)
            line = "{}\n".format(block.number).encode("ascii")
            _write_at(os.path.join(tree.partial, "have"), flags | os.O_APPEND, line, None)
            with self._changed:  # whoever waits for the block may have it before it is flushed
                self._have.add(index)
                self._changed.notify_all()
            tree.left -= 1
            if not tree.left:
                _finish(tree)

    def open_block(self, index: int) -> int:
        """A descriptor of the file that the block is in."""
        block = self.blocks[index]
        for _ in range(_RENAME_TRIES):
            with contextlib.suppress(FileNotFoundError):  # it is being renamed
                return os.open(block.tree.file(block.path), os.O_RDONLY | os.O_NOFOLLOW)
            time.sleep(_RENAME_PAUSE_S)
        return os.open(block.tree.file(block.path), os.O_RDONLY | os.O_NOFOLLOW)


def check_place(path: str) -> None:
    """Raise StageError when something that is not ours stands at ``path``."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path) and _OURS.fullmatch(os.readlink(path)):
        return
    raise StageError(
        "{} exists and is no link to staged files".format(path),
        "move it away, or stage under another path or name",
    )


def place(path: str, target: str) -> None:
    """Make ``path`` a link to ``target``, at once."""
    with _disk_errors(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        check_place(path)
        if os.path.islink(path) and os.readlink(path) == target:
            return
        temporary = "{}.staged-{}".format(path, os.getpid())
        os.symlink(target, temporary)
        os.replace(temporary, path)


def _note_places(path: str, places: List[str]) -> None:
    known: List[str] = []
    with contextlib.suppress(FileNotFoundError, ValueError), open(path, encoding="utf-8") as file:
        known = json.load(file)
    if set(places) <= set(known):
        return
    temporary = "{}.{}".format(path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(sorted({*known, *places}), file)
    os.replace(temporary, path)


def _look(tree: Tree, verify: bool, waits: Callable[[str], None]) -> Set[int]:
    """Numbers of the blocks that are there and right. The tree is locked when one is missing."""
    if os.path.isdir(tree.final):
        if not verify and _fits_record(tree):
            tree.whole = True
            return set(range(len(tree.blocks)))
        tree.whole = True
        good = {block.number for block in tree.blocks if _is_right(block)}
        if len(good) == len(tree.blocks) and _sizes_fit(tree):
            _write_record(tree, tree.final)
            return good
        tree.whole = False
        os.rename(tree.final, tree.partial)
        _lock(tree, waits)
    else:
        os.makedirs(os.path.join(tree.partial, "content"), mode=0o700, exist_ok=True)
        if not _lock(tree, waits):  # somebody else has filled it meanwhile
            return _look(tree, verify, waits)
        listed = _listed(tree)
        good = {b.number for b in tree.blocks if b.number in listed and _is_right(b)}
    text = "".join("{}\n".format(number) for number in sorted(good))
    with open(os.path.join(tree.partial, "have"), "w", encoding="ascii") as file:
        file.write(text)
    return good


def _lock(tree: Tree, waits: Callable[[str], None]) -> bool:
    """Lock the partial folder. False: it was renamed or removed while we waited."""
    tree.lock = os.open(tree.partial, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_S
    told = False
    while True:
        try:
            fcntl.flock(tree.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as failure:
            if failure.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise StageError(
                "another transfer has been filling {} for an hour".format(tree.partial),
                "end it, then repeat the command",
            )
        if not told:
            waits(tree.partial)
            told = True
        time.sleep(_POLL_S)
    try:
        same = os.path.samestat(os.fstat(tree.lock), os.stat(tree.partial))
    except FileNotFoundError:
        same = False
    if not same:
        os.close(tree.lock)
    return same


def _listed(tree: Tree) -> Set[int]:
    try:
        with open(os.path.join(tree.partial, "have"), encoding="ascii") as file:
            return {int(line) for line in file if line.strip().isdigit()}
    except FileNotFoundError:
        return set()


def _is_right(block: Block) -> bool:
    try:
        with open(block.tree.file(block.path), "rb") as file:
            file.seek(block.offset)
            return hashlib.sha256(file.read(block.size)).hexdigest() == block.sha256
    except OSError:
        return False


def _finish(tree: Tree) -> None:
    """All blocks are there: flush, write the record, rename."""
    for file in tree.files:
        path = tree.file(file["path"])
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(handle, file["size"])
            os.fchmod(handle, 0o500 if file["executable"] else 0o400)
            os.fsync(handle)
        finally:
            os.close(handle)
    _write_record(tree, tree.partial)
    os.unlink(os.path.join(tree.partial, "have"))
    os.rename(tree.partial, tree.final)
    tree.whole = True
    if tree.lock >= 0:
        os.close(tree.lock)
        tree.lock = -1


def _write_record(tree: Tree, folder: str) -> None:
    stats = [_stat(os.path.join(folder, "content", file["path"])) for file in tree.files]
    temporary = os.path.join(folder, "record.json.new")
    with open(temporary, "w", encoding="ascii") as file:
        json.dump({"schema": 1, "files": stats}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, os.path.join(folder, "record.json"))


def _fits_record(tree: Tree) -> bool:
    content = os.path.join(tree.final, "content")
    try:
        with open(os.path.join(tree.final, "record.json"), encoding="ascii") as file:
            kept = json.load(file)["files"]
        there = [_stat(os.path.join(content, file["path"])) for file in tree.files]
        return bool(kept == there)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sizes_fit(tree: Tree) -> bool:
    content = os.path.join(tree.final, "content")
    try:
        return all(
            os.stat(os.path.join(content, file["path"])).st_size == file["size"]
            for file in tree.files
        )
    except OSError:
        return False


def _stat(path: str) -> List[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _write_at(path: str, flags: int, data: bytes, offset: Optional[int]) -> None:
    try:
        handle = os.open(path, flags, 0o600)
    except PermissionError:  # read-only, of a tree that was whole and is damaged
        os.chmod(path, 0o600)
        handle = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            written = os.write(handle, view) if offset is None else os.pwrite(handle, view, offset)
            view = view[written:]
            offset = None if offset is None else offset + written
    finally:
        os.close(handle)


class _disk_errors:
    """Turns an OSError of the block into a StageError that names the folder."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: Optional[BaseException], _trace: Any) -> None:
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StageError(
                "cannot write below {}: {}".format(self.where, reason),
                "free some space there, or choose another workdir",
            ) from error
