"""Append-only JSON-lines journals: written in whole lines, read with tolerance for a torn end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional


class Journal:
    """The controller's journal: what it intended, decided and did.

    Each line is one object with ``wall`` (seconds since 1970) and ``event``. A line is one
    ``write`` to a file opened for appending, so lines of two writers never mix. ``listener`` is
    called with each event after it was written.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        listener: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._listener = listener

    def append(self, event: str, **fields: Any) -> Dict[str, Any]:
        """Add one event, durable on return."""
        entry = {"wall": round(self._clock(), 3), "event": event, **fields}
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode("utf-8", "surrogateescape"))
            os.fsync(fd)
        finally:
            os.close(fd)
        self._listener(entry)
        return entry

    def events(self) -> List[Dict[str, Any]]:
        return list(read_events(self._path))


def read_events(path: Path) -> Iterator[Dict[str, Any]]:
    """The whole lines of a journal or metrics file; a torn or foreign line is passed over.

    Journals are written while we read them and may end in half a line after a crash: that is
    a hole, not an error.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    for line in text.split(b"\n"):
        entry = parse_line(line)
        if entry is not None:
            yield entry


def last_events(
    path: Path, limit: int = 65536, *, end: Optional[int] = None
) -> List[Dict[str, Any]]:
    """The events in the last ``limit`` bytes of a file, or of its part before byte ``end``,
    without reading the rest."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END) if end is None else end
            stream.seek(max(0, size - limit))
            lines = stream.read(min(size, limit)).split(b"\n")
    except FileNotFoundError:
        return []
    if size > limit:
        lines = lines[1:]
    return [entry for entry in map(parse_line, lines) if entry is not None]


def parse_line(line: bytes) -> Any:
    """The object of one line, or None where the line holds none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
