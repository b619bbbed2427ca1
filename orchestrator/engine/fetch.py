"""Fetch whole checkpoint files: from all hosts at once, resumed where they broke off, verified."""

from __future__ import annotations

import os
import threading
import zlib
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence, TypeVar

from orchestrator.checkpoints.catalogue import CheckpointFile
from orchestrator.checkpoints.checksum import sha256_of
from orchestrator.checkpoints.collected import CollectedFile, CollectedFolder
from orchestrator.checkpoints.newfile import write
from orchestrator.engine.catalogue import Source, digests, on_holders
from orchestrator.engine.receive import Digest, Meter, Part, receive
from orchestrator.errors import CheckpointError

T = TypeVar("T")

_CHUNK = 1 << 20


def fetch_files(
    sources: Sequence[Source],
    folder: CollectedFolder,
    files: Sequence[CheckpointFile],
    changed: Mapping[int, int],
    meter: Meter,
) -> List[CollectedFile]:
    """Fetch ``files`` into the folder's parts; ``changed`` is their time of change in ns by rank.

    Each file's SHA-256 and CRC32 are computed on the host as it is sent, the CRC32 here as it
    arrives. Files on a shared file system are read in place and linked. Raises the errors of all
    hosts that could not send everything, and CheckpointError where a file is not what the host
    says it is.
    """

    def fetch(source: Source, mine: List[CheckpointFile]) -> List[CollectedFile]:
        for file in mine:
            _make_folder(folder.part(file.rank, file.name).parent)
        if source.shared_dir is not None:
            return _link(source, source.shared_dir, folder, mine, changed, meter)
        return _fetch(source, folder, mine, changed, meter)

    return [file for found in on_holders(sources, files, fetch) for file in found]


def digests_in_background(
    sources: Sequence[Source], files: Sequence[CheckpointFile]
) -> Callable[[], Dict[int, str]]:
    """Let the hosts compute the SHA-256 of files meanwhile. Calling the result waits for the
    digests, by rank, and raises the errors of the hosts."""

    def ask(source: Source, mine: List[CheckpointFile]) -> Dict[int, str]:
        answers = digests(source, mine)
        return {f.rank: str(answers[f"rank_{f.rank}/{f.name}"]["sha256"]) for f in mine}

    def ask_all() -> Dict[int, str]:
        answers = on_holders(sources, files, ask)
        return {rank: sha256 for answer in answers for rank, sha256 in answer.items()}

    return _in_background(ask_all).result


def _in_background(function: Callable[[], T]) -> Future[T]:
    """Start ``function`` in a daemon thread, which Ctrl-C need not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _fetch(
    source: Source,
    folder: CollectedFolder,
    files: Sequence[CheckpointFile],
    changed: Mapping[int, int],
    meter: Meter,
) -> List[CollectedFile]:
    sinks: Dict[int, _GrowingFile] = {}
    wanted = list(files)
    # Twice: a part may have begun with an earlier attempt's bytes of a file since replaced.
    for _ in range(2):
        parts = []
        for file in wanted:
            sink = _GrowingFile(folder.part(file.rank, file.name), file.size, meter)
            sinks[file.rank] = sink
            parts.append((Part(file, changed[file.rank], ((0, file.size),)), sink))
        try:
            receive(source, parts, meter)
        finally:
            for _, sink in parts:
                sink.close()
        wanted = [file for file in wanted if not sinks[file.rank].is_good]
        if not wanted:
            return [
                CollectedFile(
                    f.rank, f.name, f.size, sinks[f.rank].sha256, source.name, changed[f.rank]
                )
                for f in files
            ]
    bad = wanted[0]
    raise CheckpointError(
        f"rank {bad.rank}, {bad.path}: expected CRC32 {sinks[bad.rank].expected:08x} as the host "
        f"says, found {sinks[bad.rank].crc32:08x}",
        hint="the network or a memory damages data; collect again",
        host=source.name,
    )


class _GrowingFile:
    """Sink: a file that grows behind what it holds, and is thrown away if it turns out wrong."""

    def __init__(self, path: Path, size: int, meter: Meter) -> None:
        self.sha256 = ""
        self.crc32 = 0
        self.expected = 0
        self._path = path
        self._size = size
        self._meter = meter
        self._at = 0
        self._descriptor = -1

    @property
    def is_good(self) -> bool:
        return bool(self.sha256) and self.crc32 == self.expected

    def begin(self) -> int:
        if self._descriptor < 0 and not self.sha256:
            self._descriptor = _opened_for_growth(self._path)
            if os.fstat(self._descriptor).st_size > self._size:
                os.ftruncate(self._descriptor, 0)  # of a file since replaced
            while data := os.pread(self._descriptor, _CHUNK, self._at):
                self.crc32 = zlib.crc32(data, self.crc32)
                self._at += len(data)
            self._meter.here(self._at)
        return self._at

    def accept(self, data: memoryview) -> None:
        self.crc32 = zlib.crc32(data, self.crc32)
        try:
            write(self._descriptor, data, self._at)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        self._at += len(data)

    def end(self, digest: Digest) -> None:
        self.sha256, self.expected = digest
        if self.is_good:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise _cannot_write(self._path, error) from error
        else:
            self._meter.here(-self._at)
            self._path.unlink()
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _opened_for_growth(path: Path) -> int:
    if path.is_symlink():  # the file was shared at an earlier attempt
        path.unlink()
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror}",
        hint="free some space, or choose another folder with --out; then collect again",
    )


def _link(
    source: Source,
    shared_dir: str,
    folder: CollectedFolder,
    files: Sequence[CheckpointFile],
    changed: Mapping[int, int],
    meter: Meter,
) -> List[CollectedFile]:
    """The files as this machine sees them: compared with what the host sees, and linked."""
    promised = digests_in_background([source], files)
    found: List[CollectedFile] = []
    for file in files:
        path = Path(shared_dir, "output", "checkpoint", f"rank_{file.rank}", file.name)
        _check_shared(source, file, path, changed[file.rank])
        sha256 = sha256_of(path)
        meter.here(file.size)
        if sha256 != promised()[file.rank]:
            raise CheckpointError(
                f"rank {file.rank}, {path}: expected SHA-256 {promised()[file.rank]} as the host "
                f"says, found {sha256}",
                hint="it is still being written; collect again",
                host=source.name,
            )
        part = folder.part(file.rank, file.name)
        with suppress(FileNotFoundError):
            part.unlink()
        try:
            os.link(path, part)  # stays when the training removes it as too old
        except OSError:
            os.symlink(path.absolute(), part)
        found.append(
            CollectedFile(file.rank, file.name, file.size, sha256, source.name, changed[file.rank])
        )
    return found


def _check_shared(source: Source, file: CheckpointFile, path: Path, changed: int) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"the host has {file.path}, but {path} cannot be read here: {error.strerror}",
            hint="correct `shared_workdir` of the host in the inventory, or mount it here",
            host=source.name,
        ) from error
    if status.st_size != file.size or abs(status.st_mtime_ns - changed) > 1_000_000_000:
        raise CheckpointError(
            f"{path} is not the file that the host has as {file.path}: {status.st_size} bytes "
            f"here, {file.size} there",
            hint="`shared_workdir` in the inventory points to another folder, or the file is "
            "still being written",
            host=source.name,
        )
