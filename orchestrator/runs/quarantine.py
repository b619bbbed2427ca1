"""Which hosts of a cluster are kept out of plans: one small file a cluster on the controller.

``$GLM2_ORCH_HOME/quarantine/<cluster>.json``::

    {"schema": 1, "cluster": "c", "hosts": [
      {"host": "n7", "reason": "link down", "by": "preflight", "since": 1.7e9, "until": null}]}

Writers take a lock and replace the file as a whole, so a reader always finds a whole file and
needs no lock. Expired entries are not shown, and dropped at the next change.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import quote

from orchestrator.errors import Busy, HostNotReady, Location, SpecError
from orchestrator.inventory import Quarantined

OPERATOR, PREFLIGHT = "operator", "preflight"
PREFLIGHT_S = 24 * 3600.0
"""How long a host that failed the preflight is kept out."""

_LONGEST_REASON = 300
_LOCK_TRIES, _LOCK_PAUSE_S = 200, 0.05
_LAST_TIME = 253_402_300_799.0  # the end of the year 9999


class Quarantine:
    """The quarantine of one cluster. ``clock`` gives seconds since 1970."""

    def __init__(self, home: Path, cluster: str, clock: Callable[[], float] = time.time) -> None:
        self.cluster = cluster
        self.file = home / "quarantine" / f"{quote(cluster, safe='')}.json"
        self._clock = clock

    def entries(self) -> Tuple[Quarantined, ...]:
        """Who is quarantined now, by name. Raises SpecError when the file is damaged."""
        now = self._clock()
        return tuple(entry for entry in self._read() if entry.holds(now))

    def add(
        self, hosts: Mapping[str, str], *, by: str, lasting: Optional[float] = None
    ) -> Tuple[Quarantined, ...]:
        """Keep ``hosts`` (name and reason) out for ``lasting`` seconds, or until released (None).

        Only the operator shortens a quarantine: what a program finds leaves an entry alone that
        ends later. Returns the entries of these hosts as they are now.
        """
        now = self._clock()
        until = None if lasting is None else now + lasting
        with self._locked():
            known = {entry.host: entry for entry in self.entries()}
            for name, reason in hosts.items():
                new = Quarantined(name, _one_line(reason), by, now, until)
                old = known.get(name)
                if old is None or by == OPERATOR or _end(old) < _end(new):
                    known[name] = new
            self._write(known.values())
        return tuple(known[name] for name in sorted(hosts))

    def release(self, names: Iterable[str]) -> Tuple[Quarantined, ...]:
        """Let ``names`` work again; returns the entries that this ended."""
        wanted = set(names)
        with self._locked():
            known = self.entries()
            self._write(entry for entry in known if entry.host not in wanted)
        return tuple(entry for entry in known if entry.host in wanted)

    def _read(self) -> List[Quarantined]:
        try:
            text = self.file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from error
        try:
            top = json.loads(text)
            if top["schema"] != 1 or top["cluster"] != self.cluster:
                raise ValueError("it is of another schema or cluster")
            entries = [_entry(fields) for fields in top["hosts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"is damaged ({error!r})") from error
        return sorted(entries, key=lambda entry: entry.host)

    def _unusable(self, why: str) -> SpecError:
        return SpecError(
            f"the quarantine of {self.cluster} {why}",
            hint="mend the file, or remove it: then no host of this cluster is quarantined",
            location=Location(str(self.file)),
        )

    def _write(self, entries: Iterable[Quarantined]) -> None:
        hosts = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.host)]
        content = {"schema": 1, "cluster": self.cluster, "hosts": hosts}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        temporary = self.file.with_suffix(".tmp")  # only whoever has the lock comes here
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.file)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The right to change the file. Raises Busy when another writer does not let go, and
        HostNotReady when the state folder cannot be written."""
        try:
            for folder in (self.file.parent.parent, self.file.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._take(fd)
                yield
            finally:
                os.close(fd)
        except OSError as error:
            raise HostNotReady(
                f"cannot keep the quarantine in {self.file.parent}: {error.strerror}",
                hint="set GLM2_ORCH_HOME to a folder that you can write",
            ) from error

    def _take(self, fd: int) -> None:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
        raise Busy(
            f"another command is changing the quarantine of {self.cluster} and does not end",
            hint=f"see who has {self.file.with_suffix('.lock')} open, then try again",
        )


def _entry(fields: Dict[str, Any]) -> Quarantined:
    entry = Quarantined(**fields)
    if not all(isinstance(text, str) for text in (entry.host, entry.reason, entry.by)):
        raise TypeError("a host, reason or by is no text")
    times = (entry.since,) if entry.until is None else (entry.since, entry.until)
    if any(isinstance(wall, bool) or not isinstance(wall, (int, float)) for wall in times):
        raise TypeError("a time is no number")
    if not all(0 <= wall <= _LAST_TIME for wall in times):
        raise ValueError("a time is out of range")
    return entry


def _end(entry: Quarantined) -> float:
    return float("inf") if entry.until is None else entry.until


def _one_line(reason: str) -> str:
    """A reason fit for a table, whatever a tool's output it came from."""
    words = " ".join(reason.split())
    text = "".join(char if char.isprintable() else "?" for char in words)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
