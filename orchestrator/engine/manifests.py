"""What is to be staged: local files read once, block by block, into manifests named by content."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from orchestrator.errors import SpecError
from orchestrator.job import Job
from orchestrator.stage_options import StageItem

BLOCK_BYTES = 4 << 20
"""What is checked, asked for and passed on at once. Part of every digest."""

LARGE_BYTES = 64 << 20
"""Reading a file of this size takes long enough to say so."""

_YOUNG_S = 2.0
"""A file changed so shortly before it was read may change again within its time stamp."""


@dataclass(frozen=True)
class Manifest:
    """A staged item, and what is in it."""

    item: StageItem
    """With its digest."""
    files: Tuple[Dict[str, Any], ...]
    """``path`` below the content, ``size``, ``executable``, ``blocks`` (SHA-256 of each)."""

    @property
    def digest(self) -> str:
        return self.item.digest

    @property
    def bytes(self) -> int:
        return sum(file["size"] for file in self.files)

    def source_of(self, path: str) -> str:
        """Where the file is on this machine."""
        return self.item.source if self.item.file else os.path.join(self.item.source, path)


def manifests_of(
    job: Job, cache: Path, progress: Optional[Callable[[str], None]] = None
) -> Tuple[Job, Tuple[Manifest, ...]]:
    """The job with the digests of its staged items, and their manifests.

    ``cache`` is a folder that keeps the digests of files, as long as size and time of these are
    the same. Raises SpecError for a source that cannot be read.
    """
    found = tuple(read_source(item, cache, progress) for item in job.stage.items)
    items = tuple(manifest.item for manifest in found)
    return replace(job, stage=replace(job.stage, items=items)), found


def read_source(
    item: StageItem, cache: Path, progress: Optional[Callable[[str], None]] = None
) -> Manifest:
    """The manifest of one item. Raises SpecError."""
    kept = _Kept(cache, item.source)
    try:
        single = stat.S_ISREG(os.stat(item.source).st_mode)
        names = [os.path.basename(item.source)] if single else _names(item)
        files: List[Dict[str, Any]] = []
        for name in names:
            path = item.source if single else os.path.join(item.source, name)
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise SpecError(
                    f"{path} cannot be staged: it is neither a file nor a folder",
                    hint="leave it out with `exclude:`",
                )
            files.append(
                {
                    "path": name,
                    "size": status.st_size,
                    "executable": bool(status.st_mode & stat.S_IXUSR),
                    "blocks": kept.blocks(path, status, progress),
                }
            )
    except OSError as error:
        raise SpecError(
            f"cannot read {error.filename or item.source} to stage it: {error.strerror}",
            hint="correct `from:` in the `stage` section",
        ) from error
    if not files:
        raise SpecError(f"{item.source} holds no file to stage", hint="correct `from:`")
    kept.save()
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    file = os.path.basename(item.source) if single else ""
    return Manifest(replace(item, digest=digest, file=file), tuple(files))


def _names(item: StageItem) -> List[str]:
    """Files below the folder, sorted. A link to a file is that file; one to a folder is refused."""
    found: List[str] = []
    for folder, folders, files in os.walk(item.source, onerror=_raise):
        folders[:] = sorted(name for name in folders if not _excluded(item, name))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise SpecError(
                    f"{os.path.join(folder, name)} cannot be staged: it is a link to a folder",
                    hint="stage what it points to, or leave it out with `exclude:`",
                )
        below = os.path.relpath(folder, item.source)
        found += [
            os.path.normpath(os.path.join(below, name))
            for name in files
            if not _excluded(item, name)
        ]
    for name in found:
        if not name.isprintable() or any("\ud800" <= char < "\ue000" for char in name):
            raise SpecError(f"the file name {name!r} cannot be staged", hint="rename the file")
    return sorted(found)


def _excluded(item: StageItem, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in item.exclude)


def _raise(error: OSError) -> None:
    raise error


class _Kept:
    """Digests of the blocks of files, as they were found by an earlier command."""

    def __init__(self, cache: Path, source: str) -> None:
        self._file = cache / f"{hashlib.sha256(os.fsencode(source)).hexdigest()}.json"
        self._old: Dict[str, Any] = {}
        self._new: Dict[str, Any] = {}
        # A file that is damaged, or of another version, only costs the time to read all anew.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file.read_text("utf-8"))
            if kept["schema"] == 1 and kept["block_bytes"] == BLOCK_BYTES:
                self._old = dict(kept["files"])

    def blocks(
        self, path: str, status: os.stat_result, progress: Optional[Callable[[str], None]]
    ) -> List[str]:
        version = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = self._old.get(path)
        if not entry or entry[0] != version:
            if progress is not None and status.st_size >= LARGE_BYTES:
                progress(f"reading {path}")
            entry = [version, _blocks(path)]
        if time.time() - status.st_mtime > _YOUNG_S:
            self._new[path] = entry
        return list(entry[1])

    def save(self) -> None:
        if self._new == self._old:
            return
        content = {"schema": 1, "block_bytes": BLOCK_BYTES, "files": self._new}
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self._file)


def _blocks(path: str) -> List[str]:
    found: List[str] = []
    with open(path, "rb") as file:
        while True:
            data = file.read(BLOCK_BYTES)
            if not data:
                return found
            found.append(hashlib.sha256(data).hexdigest())
