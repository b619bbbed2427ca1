"""A folder of collected checkpoints: what is complete in it, and how a step becomes so.

::

    checkpoint/rank_N/*.ckpt   verified files, of one step or several; links where they lie on
                               a shared file system
    strategy/*
    manifest.json              every file of every complete step with its SHA-256
    COMPLETE                   the complete steps; written last
    .incoming/                 files on their way, continued at the next attempt

A file enters ``checkpoint/`` only when all files of its step have arrived and are verified.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator import __version__
from orchestrator.checkpoints.catalogue import rank_of_folder
from orchestrator.checkpoints.checksum import sha256_of
from orchestrator.errors import Busy, CheckpointError


@dataclass(frozen=True)
class CollectedFile:
    """A verified file of a step. ``mtime_ns`` is that of the copy here, ``source_mtime_ns`` that
    on the host: while neither has changed, the content need not be read again."""

    rank: int
    name: str
    size: int
    sha256: str
    host: str
    source_mtime_ns: int
    mtime_ns: int = 0


class CollectedFolder:
    """The folder ``root``; made when it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def strategy(self) -> Path:
        return self.root / "strategy"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def marker(self) -> Path:
        return self.root / "COMPLETE"

    @property
    def incoming(self) -> Path:
        return self.root / ".incoming"

    def path(self, file: CollectedFile) -> Path:
        return self.checkpoint / f"rank_{file.rank}" / file.name

    def part(self, rank: int, name: str) -> Path:
        """Where a file of a step grows while it is fetched."""
        return self.incoming / f"rank_{rank}" / f"{name}.part"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other collectors out of the folder; Busy when one is in it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.root}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Busy(f"another process is collecting into {self.root}") from error
            yield
        finally:
            os.close(descriptor)

    def arrived(self, rank: int, name: str) -> int:
        """Bytes of a part that are here."""
        part = self.part(rank, name)
        return 0 if part.is_symlink() or not part.exists() else part.stat().st_size

    def ranks(self) -> FrozenSet[int]:
        """Ranks of which files are here, of any step, collected or on their way."""
        names = [p.parent.name for p in self.checkpoint.glob("rank_*/*")]
        names += [p.parent.name for p in self.incoming.glob("rank_*/*")]
        found = (rank_of_folder(name) for name in names)
        return frozenset(rank for rank in found if rank is not None)

    def collected(self, step: str) -> Tuple[CollectedFile, ...]:
        """The files that were collected of a step."""
        return _entries(self._manifest()["steps"].get(step))

    def intact(self, step: str) -> Tuple[CollectedFile, ...]:
        """Those of them that are still here, unchanged."""
        return tuple(file for file in self.collected(step) if self._unchanged(file))

    def complete(self, step: str) -> Optional[Tuple[CollectedFile, ...]]:
        """The files of a complete step, if every one is still here unchanged; else None."""
        if step not in self._complete_steps():
            return None
        files = self.intact(step)
        return files if files and len(files) == len(self.collected(step)) else None

    def install(
        self,
        step: str,
        files: Sequence[CollectedFile],
        strategies: Mapping[str, bytes],
        notes: Sequence[str],
    ) -> Tuple[CollectedFile, ...]:
        """Move the verified parts of a step into place, and mark it complete at the very end.

        ``files`` without a part are in place already. Files of an earlier collection of the step
        that are not among ``files`` are removed: they are of another save.
        """
        self._mark([other for other in self._complete_steps() if other != step])
        document = self._manifest()
        stale = {self.path(file) for file in _entries(document["steps"].get(step))}
        for path in stale - {self.path(file) for file in files}:
            path.unlink(missing_ok=True)
        for name, content in strategies.items():
            _write(self.strategy / name, content)
        placed: List[CollectedFile] = []
        for file in files:
            path, part = self.path(file), self.part(file.rank, file.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if part.exists():
                os.replace(part, path)
                _sync(path.parent)
            entry = asdict(file)
            entry["mtime_ns"] = path.stat().st_mtime_ns
            placed.append(CollectedFile(**entry))
        document["tool"] = f"glm2-orch {__version__}"
        document["steps"][step] = {
            "files": [asdict(file) for file in placed],
            "strategy": {
                name: hashlib.sha256(content).hexdigest() for name, content in strategies.items()
            },
            "notes": list(notes),
        }
        _write(self.manifest, json.dumps(document, indent=1).encode())
        shutil.rmtree(self.incoming, ignore_errors=True)
        self._mark([*self._complete_steps(), step])
        return tuple(placed)

    def keep(self, number: int, step: str) -> Tuple[str, ...]:
        """Remove all complete steps but the last ``number``, of which ``step`` is always one;
        return those that went. Other files in the folder are left alone."""
        complete = sorted(self._complete_steps(), key=_step_order)
        others = [other for other in complete if other != step]
        gone = others[: max(0, len(others) - (number - 1))]
        if not gone:
            return ()
        self._mark([other for other in complete if other not in gone])
        document = self._manifest()
        entries = {name: _entries(document["steps"].pop(name, None)) for name in gone}
        _write(self.manifest, json.dumps(document, indent=1).encode())
        for file in (file for files in entries.values() for file in files):
            self.path(file).unlink(missing_ok=True)
        return tuple(gone)

    def _unchanged(self, file: CollectedFile) -> bool:
        path = self.path(file)
        try:
            status = path.stat()
        except OSError:
            return False
        if status.st_size != file.size:
            return False
        return status.st_mtime_ns == file.mtime_ns or sha256_of(path) == file.sha256

    def _complete_steps(self) -> List[str]:
        document = _read_json(self.marker)
        steps = document.get("steps")
        return [str(step) for step in steps] if isinstance(steps, list) else []

    def _manifest(self) -> Dict[str, Any]:
        document = _read_json(self.manifest)
        if not isinstance(document.get("steps"), dict):
            return {"schema": 1, "steps": {}}
        return document

    def _mark(self, steps: Sequence[str]) -> None:
        if steps:
            _write(self.marker, json.dumps({"schema": 1, "steps": list(steps)}).encode())
        else:
            self.marker.unlink(missing_ok=True)


def collected_files(root: Path) -> Dict[Path, CollectedFile]:
    """The verified files that the manifest of a collected folder lists, by resolved path; none
    where ``root`` is no such folder."""
    folder = CollectedFolder(root)
    steps = _read_json(folder.manifest).get("steps")
    found: Dict[Path, CollectedFile] = {}
    for step in steps.values() if isinstance(steps, dict) else ():
        for file in _entries(step):
            found[folder.path(file).resolve()] = file
    return found


def _step_order(step: str) -> Tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", step))


def _entries(step: object) -> Tuple[CollectedFile, ...]:
    """The files of a step in the manifest; none where the entry makes no sense."""
    try:
        return tuple(CollectedFile(**entry) for entry in step["files"])  # type: ignore[index]
    except (KeyError, TypeError):
        return ()


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # absent or torn: nothing is known to be complete
    return document if isinstance(document, dict) else {}


def _write(path: Path, content: bytes) -> None:
    """Replace a small file, durably, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
