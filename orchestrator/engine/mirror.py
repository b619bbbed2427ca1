"""Byte-exact local copies of a host's growing files, written in order and never past a hole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Mapping

from orchestrator.errors import TransportError
from orchestrator.runs.layout import RunPaths


class Mirror:
    """The controller's copies of one host's files.

    Their lengths are the offsets from which a stream is resumed, so a controller that starts
    anew knows where the last one stopped.
    """

    def __init__(self, paths: RunPaths, host: str) -> None:
        self._paths = paths
        self._host = host

    def offsets(self, processes: list[str]) -> Dict[str, int]:
        """Offsets by file name on the host, for the logs and metrics of ``processes``."""
        files = [
            f"ranks/{process}/{name}"
            for process in processes
            for name in ("stdout.log", "metrics.jsonl")
        ]
        return {file: _size(self._target(file)) for file in files}

    def journal_offset(self) -> int:
        return _size(self._paths.host_journal(self._host))

    def append_data(self, file: str, offset: int, data: bytes) -> None:
        """Add bytes that begin at ``offset``. Bytes that are there already are passed over.

        Raises TransportError where the bytes would leave a hole.
        """
        _append(self._target(file), offset, data)

    def append_event(self, end: int, event: Mapping[str, Any]) -> None:
        """Add a journal line that ends at byte ``end`` of the host's journal."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        _append(self._paths.host_journal(self._host), end - len(line), line)

    def beat(self, wall: float, received: float) -> None:
        """Remember when the host was last heard: its clock and ours (Unix seconds)."""
        path = self._paths.host_beat(self._host)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"wall": received, "host_wall": wall})
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)

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


def _append(path: Path, offset: int, data: bytes) -> None:
    size = _size(path)
    if offset > size:
        raise TransportError(
            f"bytes {size} to {offset} of {path.name} are missing from the stream",
            hint="the stream is resumed from the last byte at hand",
        )
    fresh = data[size - offset :]
    if fresh:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab") as stream:
            stream.write(fresh)
