"""One controller a run: who controls it now is written here, and whoever came before is refused.

Each controller has an epoch, a number higher than that of the one before. The first command that
carries a higher epoch makes its sender the controller; from then on lower ones are refused.
"""

from __future__ import annotations

import fcntl
import os

from .failure import NodeError
from .folder import Json, RunFolder, read_json
from .light import dumps

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Optional

FILE = "controller.json"


class Caller:
    """Who sends a command: the epoch of its controller, and its own name. A command that only
    acts for the controller, such as ``stop`` from another terminal, names no owner."""

    def __init__(self, epoch: int, owner: str = "") -> None:
        self.epoch = epoch
        self.owner = owner

    def to_json(self) -> Json:
        return {"epoch": self.epoch, "owner": self.owner}


def admit(folder: RunFolder, caller: Optional[Caller]) -> None:
    """Let the caller through, or raise NodeError (fenced). None is somebody on the host itself.

    A higher epoch than any before is remembered.
    """
    if caller is None or not os.path.isdir(folder.path):
        return
    try:
        descriptor = os.open(_path(folder), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # a full disk: nobody could have been remembered, and `stop` must work
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        known = read_json(_path(folder))
        if known is not None and _is_fenced(known, caller):
            raise _refusal(known, caller)
        if known is None or (caller.owner and known != caller.to_json()):
            _write(descriptor, caller)
    finally:
        os.close(descriptor)


def controller(folder: RunFolder) -> Optional[Json]:
    """Who controls the run: ``epoch`` and ``owner``; None: nobody has said so."""
    return read_json(_path(folder))


def successor(folder: RunFolder, caller: Optional[Caller]) -> Optional[Json]:
    """Who controls the run instead of the caller: ``epoch`` and ``owner``; None: nobody else."""
    known = None if caller is None else read_json(_path(folder))
    if caller is None or known is None or not _is_fenced(known, caller):
        return None
    return {"epoch": known["epoch"], "owner": known["owner"]}


def _of(known: Json) -> Caller:
    return Caller(int(known["epoch"]), str(known["owner"]))


def _is_fenced(known: Json, caller: Caller) -> bool:
    other = _of(known)
    if caller.epoch != other.epoch:
        return caller.epoch < other.epoch
    return bool(caller.owner and other.owner and caller.owner != other.owner)


def _write(descriptor: int, caller: Caller) -> None:
    """In place, and never shorter than before while it is half written: readers come unlocked,
    and see the old controller, the new one, or none for a moment."""
    data = dumps(caller.to_json())
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _refusal(known: Json, caller: Caller) -> NodeError:
    return NodeError(
        "fenced",
        "another controller has taken over the run: {} (epoch {}, ours is {})".format(
            known["owner"] or "unknown", known["epoch"], caller.epoch
        ),
        "control it from there, or take it over from here: glm2-orch attach --take-over",
    )


def _path(folder: RunFolder) -> str:
    return os.path.join(folder.path, FILE)
