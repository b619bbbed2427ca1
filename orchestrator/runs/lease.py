"""One controller a run: a lock that the kernel gives back when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict, Optional

from orchestrator.errors import Busy


class Lease:
    """The right to control a run, held until ``release`` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def acquire(path: Path, purpose: str) -> Lease:
    """Take the lease whose lock file is ``path``. Raises Busy naming the holder."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock_soon(fd):
        os.close(fd)
        held = holder(path) or {}
        raise Busy(
            f"run {path.parent.name} is controlled by process {held.get('pid', '?')} "
            f"on {held.get('host', 'this machine')} ({held.get('purpose', 'unknown')})",
            hint=f"follow it with: glm2-orch attach {path.parent.name}",
        )
    note = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose}
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(note).encode(), 0)
    return Lease(fd)


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
    """Who holds the lease now: ``{"pid", "host", "purpose"}``; None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        try:
            note = json.loads(os.pread(fd, 4096, 0))
        except ValueError:
            note = {}
        return note if isinstance(note, dict) else {}
    finally:
        os.close(fd)
    return None
