"""Byte-exact local copies of a host's growing files, written in order and never past a hole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Mapping

from orchestrator.errors import TransportError
from orchestrator.runs.layout import RunPaths


class Mirror:
    """The controller's copies of one host's files. Used from one thread at a time.

    Their lengths are the offsets from which a stream is resumed, so a controller that starts
    anew knows where the last one stopped.
    """

    def __init__(self, paths: RunPaths, host: str) -> None:
        self._paths = paths
        self._host = host
        self._copies: Dict[Path, _Copy] = {}
        self._targets: Dict[str, Path] = {}

    def offsets(self, processes: list[str]) -> Dict[str, int]:
        """Offsets by file name on the host, for the logs and metrics of ``processes``."""
        self.close()
        files = [
            f"ranks/{process}/{name}"
            for process in processes
            for name in ("stdout.log", "metrics.jsonl")
        ]
        return {file: _size(self._target(file)) for file in files}

    def journal_offset(self) -> int:
        return _size(self._paths.host_journal(self._host))

    def append_data(self, file: str, offset: int, data: bytes) -> bytes:
        """Add bytes that begin at ``offset``; returns those that were not there already.

        Raises TransportError where the bytes would leave a hole.
        """
        target = self._targets.get(file)
        if target is None:
            target = self._targets[file] = self._target(file)
        return self._append(target, offset, data)

    def append_event(self, end: int, event: Mapping[str, Any]) -> None:
        """Add a journal line that ends at byte ``end`` of the host's journal."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        self._append(self._paths.host_journal(self._host), end - len(line), line)

    def close(self) -> None:
        """Close the files; they are opened again when something comes."""
        while self._copies:
            self._copies.popitem()[1].close()

    def _append(self, path: Path, offset: int, data: bytes) -> bytes:
        copy = self._copies.get(path)
        if copy is None:
            copy = self._copies[path] = _Copy(path)
        return copy.append(offset, data)

    def _target(self, file: str) -> Path:
        """Where a host's file is kept. The names come from a host: only known shapes pass."""
        parts = file.split("/")
        if len(parts) == 3 and parts[0] == "ranks" and _plain(parts[1]):
            if parts[2] == "stdout.log":
                return self._paths.log(parts[1])
            if parts[2] == "metrics.jsonl":
                return self._paths.metrics(parts[1])
        raise TransportError(f"{self._host} sent an unexpected file name: {file!r}")


def _plain(name: str) -> bool:
    return name.replace("_", "").isalnum()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _Copy:
    """One file, kept open: a busy log gets bytes ten times a second."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._name = path.name
        self._stream = path.open("ab", buffering=0)

    def append(self, offset: int, data: bytes) -> bytes:
        # Asked each time: a controller that was taken over from may wake up and write, too.
        size = os.fstat(self._stream.fileno()).st_size
        if offset > size:
            raise TransportError(
                f"bytes {size} to {offset} of {self._name} are missing from the stream",
                hint="the stream is resumed from the last byte at hand",
            )
        fresh = data[size - offset :] if offset < size else data
        view = memoryview(fresh)
        while view:
            # What a full disk let through counts: the stream is resumed behind it.
            view = view[self._stream.write(view) :]
        return fresh

    def close(self) -> None:
        self._stream.close()
