"""``stop`` and ``sweep``: end a run on this host and prove that nothing of it is left."""

from __future__ import annotations

import os
import time

from . import control, processes, snapshot
from .failure import NodeError
from .folder import Json, RunFolder
from .light import signal, socket
from .spec import load
from .supervision import FLUSH_PATIENCE_S, KILL_PATIENCE_S

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import List, Optional, Set, Tuple

    from .processes import Process

_MARGIN_S = 5.0
_POLL_S = 0.03
_LEFTOVER_GRACE_S = 2.0


def stop(folder: RunFolder, grace: Optional[float], reason: str) -> Json:
    """Ask the supervisor to end everything, wait until it has, and sweep what it left.

    A supervisor that does not answer, or does not end in its time, is killed, after its ranks
    had their grace. Works as well when it is gone, or when nothing was ever started.
    """
    supervisor = snapshot.supervisor_identity(folder)
    if supervisor is not None:
        patience = _request_stop(folder, supervisor, grace, reason)
        if not _wait_for_end(supervisor, patience):
            _sweep(folder, grace, supervisor.pid)
            processes.send(supervisor, signal.SIGKILL)
            _wait_for_end(supervisor, _MARGIN_S)
    return _sweep(folder, grace)


def sweep(folder: RunFolder, grace: Optional[float]) -> Json:
    """End what a dead supervisor left behind. Raises NodeError (busy) when it lives."""
    supervisor = snapshot.supervisor_identity(folder)
    if supervisor is not None and snapshot.take(folder)["state"] == "finished":
        _wait_for_end(supervisor, FLUSH_PATIENCE_S)  # it has said its last word
        supervisor = snapshot.supervisor_identity(folder)
    if supervisor is not None:
        raise NodeError(
            "busy",
            f"the supervisor of {folder.path} is alive (pid {supervisor.pid})",
            "use stop: it ends the supervisor too",
        )
    return _sweep(folder, grace)


def sweep_leftovers(marks: Set[Tuple[str, str]], workdir: str, but: str) -> List[Json]:
    """End what earlier runs of this workdir left on the host: processes that carry the marks of
    a run whose supervisor is dead. ``marks`` are those of all processes, ``but`` is the run folder
    of the run that asks.

    One entry a run that had any: ``run_id``, ``run_dir``, ``clean``, ``swept``, ``left``.
    """
    runs = os.path.realpath(os.path.join(workdir, "runs")) + os.sep
    swept = []
    for run_id, run_dir in sorted(marks):
        place = os.path.realpath(run_dir)
        folder = RunFolder(run_dir)
        if not place.startswith(runs) or place == os.path.realpath(but):
            continue
        if snapshot.supervisor_identity(folder) is None:
            left, asked = _end(folder, run_id, _LEFTOVER_GRACE_S)
            names = [{"pid": one.pid, "command": one.name} for one in left]
            swept.append({"run_id": run_id, "run_dir": run_dir, "swept": asked, "left": names})
    return [entry for entry in swept if entry["swept"]]


def _request_stop(
    folder: RunFolder, supervisor: Process, grace: Optional[float], reason: str
) -> float:
    """Returns how long the supervisor may take from now on, in seconds."""
    request: Json = {"command": "stop", "reason": reason}
    if grace is not None:
        request["grace"] = grace
    try:
        answer = control.ask(folder.path, request, timeout=_MARGIN_S)
        allowed = float(answer["grace_s"])
    except socket.timeout:  # it hangs
        return 0.0
    except (OSError, KeyError):  # it is just ending
        return _MARGIN_S
    return allowed + KILL_PATIENCE_S + FLUSH_PATIENCE_S + _MARGIN_S


def _wait_for_end(process: Process, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while processes.is_alive(process.pid, process.start_ticks):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_S)
    return True


def _sweep(folder: RunFolder, grace: Optional[float], supervisor: Optional[int] = None) -> Json:
    from . import certificate  # here, because arming is to be quick

    run_id = _run_id(folder)
    left, swept = _end(folder, run_id, _grace(folder, grace), supervisor)
    state = snapshot.take(folder)
    return dict(
        certificate.make(folder, run_id, left),
        swept=swept,
        state=state["state"],
        outcome=state["outcome"],
    )


def _end(
    folder: RunFolder, run_id: str, grace: float, supervisor: Optional[int] = None
) -> Tuple[List[Process], int]:
    """TERM, grace, KILL to all of the run but its supervisor; who is left, and how many were
    signalled."""
    # Never the one who asks: a shell may have the environment of a rank.
    spared = processes.ancestors(os.getpid(), processes.table())
    asked: Set[Tuple[int, int]] = set()
    kill_at = time.monotonic() + grace
    while True:
        left = processes.members(run_id, folder.path, supervisor, spared)
        now = time.monotonic()
        if not left or now >= kill_at + KILL_PATIENCE_S:
            return left, len(asked)
        for process in left if now >= kill_at else processes.tops(left):
            key = (process.pid, process.start_ticks)
            if now >= kill_at:
                processes.send(process, signal.SIGKILL)
            elif key not in asked:
                processes.send(process, signal.SIGTERM)
                processes.send(process, signal.SIGCONT)  # a stopped process would not see it
            asked.add(key)
        time.sleep(_POLL_S)


def _run_id(folder: RunFolder) -> str:
    """From the specification; the folder has the same name, should that be unreadable."""
    try:
        return load(folder.spec).run_id
    except NodeError:
        return os.path.basename(folder.path)


def _grace(folder: RunFolder, grace: Optional[float]) -> float:
    if grace is not None:
        return grace
    try:
        return load(folder.spec).grace_s
    except NodeError:
        return 10.0
