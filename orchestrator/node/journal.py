"""``journal.jsonl``: what happened on this host, one event a line, only ever appended to."""

from __future__ import annotations

import os
import time

from .folder import Json, append_only
from .light import dumps, loads

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Callable, List, Tuple


class Journal:
    """The supervisor's side. Writing never raises: a full disk must not cost the ranks.

    What could not be written is kept in memory, in order, and tried again by ``flush``;
    ``problem`` says why, and is empty when all is on disk.
    """

    def __init__(
        self, path: str, write: Callable[[int, bytes], int] = os.write, seq: int = 0
    ) -> None:
        self.seq = seq
        self.problem = ""
        self._write = write
        self._pending = b""
        self._descriptor = append_only(path)

    def append(self, event: str, **fields: Any) -> Json:
        self.seq += 1
        entry: Json = {
            "seq": self.seq,
            "wall": time.time(),
            "mono": time.monotonic(),
            "event": event,
        }
        entry.update(fields)
        self._pending += dumps(entry)
        self.flush()
        return entry

    def flush(self) -> bool:
        """Try to write what is pending; True when nothing is left.

        A part of a line may reach the disk: the rest follows later, readers wait for its end.
        """
        while self._pending:
            try:
                written = self._write(self._descriptor, self._pending)
            except OSError as error:
                self.problem = f"journal.jsonl: {error.strerror}"
                return False
            self._pending = self._pending[written:]
        self.problem = ""
        return True

    def sync(self) -> None:
        """Ask the disk to keep what was written, for the last event of a run."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.problem = f"journal.jsonl: {error.strerror}"

    def close(self) -> None:
        os.close(self._descriptor)


def read(path: str, offset: int = 0) -> List[Tuple[int, Json]]:
    """Complete events from byte ``offset`` on, each with the offset behind its line.

    A file that is not there has no events; a last line without its end is left for later.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return []
    events = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        offset += len(line)
        events.append((offset, _event(line)))
    return events


def _event(line: bytes) -> Json:
    """A line that no crash should leave, but a lost disk block can, stays visible."""
    try:
        event = loads(line.decode("utf-8"))
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        return {"event": "unreadable", "line": line.decode("utf-8", "replace")}
    return event
