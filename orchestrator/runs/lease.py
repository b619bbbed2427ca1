"""One controller a run: a lock that the kernel gives back when its holder dies.

Each holder has an epoch, one higher than the last. The hosts refuse commands of lower epochs, so
that a controller which was taken over from while it was stopped or cut off can do no harm when
it wakes up.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from orchestrator.errors import Busy

_NOTE_BYTES = 512


class Lease:
    """The right to control a run, held until ``release`` or the end of the process."""

    def __init__(self, fd: int, purpose: str, epoch: int) -> None:
        self._fd = fd
        self._purpose = purpose
        self.epoch = epoch
        self._write()

    @property
    def owner(self) -> str:
        """Who holds it, for people: ``attach (pid 12 on ops1)``."""
        return f"{self._purpose} (pid {os.getpid()} on {socket.gethostname()})"

    @property
    def caller(self) -> Tuple[str, ...]:
        """The options by which the supervisors know us."""
        return ("--epoch", str(self.epoch), "--owner", self.owner)

    def raise_to(self, epoch: int) -> None:
        """Take a higher epoch, because the hosts have seen controllers that we know nothing of."""
        self.epoch = max(self.epoch, epoch)
        self._write()

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self) -> None:
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "purpose": self._purpose,
            "epoch": self.epoch,
        }
        # At once and always as long, so that nobody finds it empty or in part.
        os.pwrite(self._fd, json.dumps(note).encode().ljust(_NOTE_BYTES), 0)


def acquire(path: Path, purpose: str, *, take_over: bool = False) -> Lease:
    """Take the lease whose lock file is ``path``. Raises Busy naming the holder, unless it is to
    be taken over from a holder that is alive but does not do its work."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    epoch = last_epoch(path) + 1
    if _lock_soon(fd):
        return Lease(fd, purpose, epoch)
    os.close(fd)
    if take_over:
        return _replaced(path, purpose, epoch)
    held = holder(path) or {}
    raise Busy(
        f"run {path.parent.name} is controlled by process {held.get('pid', '?')} "
        f"on {held.get('host', 'this machine')} ({held.get('purpose', 'unknown')})",
        hint=f"follow it with: glm2-orch attach {path.parent.name}",
    )


def _replaced(path: Path, purpose: str, epoch: int) -> Lease:
    """A new lock file, locked before it is in its place: the old holder keeps a file without
    name."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lease = Lease(fd, purpose, epoch)
    os.replace(fresh, path)
    return lease


def _lock_soon(fd: int) -> bool:
    """Try for half a second: ``holder`` in another process touches the lock for an instant."""
    for _ in range(10):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.05)
    return False


def holder(path: Path) -> Optional[Dict[str, Any]]:
    """Who holds the lease now: ``{"pid", "host", "purpose", "epoch"}``; None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _note(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)
    return None


def last_epoch(path: Path) -> int:
    """The epoch of the newest controller, alive or not; 0 where there was none."""
    try:
        epoch = _note(path.read_bytes()).get("epoch", 0)
    except FileNotFoundError:
        return 0
    return epoch if isinstance(epoch, int) else 0


def _note(data: bytes) -> Dict[str, Any]:
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
