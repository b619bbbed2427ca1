"""Locks that die with their holder: one on the run folder, one for each device it uses."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from .failure import NodeError
from .folder import Json, read_json
from .holders import path_of
from .light import dumps

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Optional

_PATIENCE_S = 10.0
_PAUSE_S = 0.01


class Lock:
    """An flock held on ``path`` until ``release`` or until every process that has it ended.

    The file holds ``holder`` as JSON, so that whoever is refused can say by whom. It stays in
    place, empty, when released: removing it would let two holders lock two files of one name.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def release(self) -> None:
        os.ftruncate(self.descriptor, 0)
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def take(path: str, holder: Json) -> Optional[Lock]:
    """Take the lock, or None when somebody has it. Raises OSError when it cannot be made."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if not _lock(descriptor):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, dumps(holder), 0)
    return Lock(path, descriptor)


def take_lease(workdir: str, name: str, holder: Json) -> Lock:
    """Take the lease ``name`` of this host. Raises NodeError (busy, or port-taken) that names the
    holder."""
    path = path_of(workdir, name)
    lock = take(path, holder)
    if lock is None:
        other = read_json(path) or {}
        run = other.get("run_id", "unknown")
        raise NodeError(
            "port-taken" if name.startswith("port_") else "busy",
            f"{name} is held by run {run} (supervisor pid {other.get('pid', 'unknown')})",
            f"wait for run {run} to end (launch --wait), or stop it with: glm2-orch stop {run}",
        )
    return lock


def _lock(descriptor: int) -> bool:
    """Whoever has the lock has it alone, and is not waited for. Whoever only looks
    (``holders.holder``) shares it for an instant, and is: even where that takes long."""
    until = time.monotonic() + _PATIENCE_S
    while not _try(descriptor, fcntl.LOCK_EX):
        if not _try(descriptor, fcntl.LOCK_SH) or time.monotonic() >= until:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_PAUSE_S)
    return True


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
