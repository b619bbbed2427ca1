"""From a command over SSH to a process in the background that waits for ``start``."""

from __future__ import annotations

import os
import sys
import time

from . import control, journal, leases, processes
from .failure import NodeError, print_exception
from .folder import Json, RunFolder, append_only
from .light import dumps
from .spec import Spec, load
from .supervision import Supervision

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import List

    from .leases import Lock


def supervise(folder: RunFolder, start_timeout: float, writer: int) -> int:
    """Become the supervisor of the run, say so on the pipe ``writer``, or why not, and end with the
    run. Returns the exit status.

    In a session of its own, so that the end of a terminal or a connection does not reach it; it
    never opens a terminal that would become its own.
    """
    locks: List[Lock] = []
    try:
        os.setsid()
        spec = load(folder.spec)
        # Before the leases are taken: what an earlier run left behind still holds them.
        swept = _sweep(spec, folder)
        os.chdir(folder.path)
        _leave_the_terminal(folder, keep=writer)
        identity = processes.identity()
        locks = _take_locks(folder, spec, identity)
        listener = control.listen()
        supervision = Supervision(folder, spec, locks[1:])
        answer = dict(supervision.arm(start_timeout, identity), swept=swept)
    except NodeError as error:
        return _refuse(writer, locks, error)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _refuse(
            writer,
            locks,
            NodeError(
                "host-not-ready",
                f"the supervisor cannot be set up in {folder.path}: {what}",
                "check that workdir exists, is writable and has room",
            ),
        )
    _reply(writer, answer)
    try:
        supervision.run(listener)
    except Exception as error:
        print_exception()
        supervision.abort(f"internal error of the supervisor: {type(error).__name__}: {error}")
        return 1
    finally:
        listener.close()
        try:
            os.unlink(control.SOCKET)
        except OSError:  # somebody removed the folder
            pass
        _release(locks)
    return 0


def _sweep(spec: Spec, folder: RunFolder) -> List[Json]:
    marks = processes.all_marks()
    if not marks:  # as nearly always
        return []
    from . import stopping  # here, because of light.py

    return stopping.sweep_leftovers(marks, spec.workdir, but=folder.path)


def _leave_the_terminal(folder: RunFolder, keep: int) -> None:
    """Hold nothing of the session that armed us, or its SSH channel would never close."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = append_only(folder.supervisor_log)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != keep:
            try:
                os.close(descriptor)
            except OSError:  # that of the listing itself
                continue


def _take_locks(folder: RunFolder, spec: Spec, identity: Json) -> List[Lock]:
    """The lock on the folder first, then the leases. All or none."""
    holder: Json = {
        "run_id": spec.run_id,
        "host": spec.host,
        "since": time.time(),
        **identity,
    }
    lock = leases.take(folder.lock, holder)
    if lock is None:
        raise NodeError(
            "busy", f"run {spec.run_id} is already armed in {folder.path}", "stop it first"
        )
    locks = [lock]
    try:
        if journal.read(folder.journal):
            raise NodeError(
                "busy",
                f"{folder.path} has already been used by a run",
                "launch again: every run has a folder of its own",
            )
        os.makedirs(os.path.join(spec.workdir, "leases"), mode=0o700, exist_ok=True)
        for name in spec.leases:
            locks.append(leases.take_lease(spec.workdir, name, holder))
    except (NodeError, OSError):
        _release(locks)
        raise
    return locks


def _refuse(writer: int, locks: List[Lock], error: NodeError) -> int:
    _release(locks)
    _reply(writer, error.to_json())
    return 0


def _release(locks: List[Lock]) -> None:
    while locks:
        locks.pop().release()


def _reply(writer: int, answer: Json) -> None:
    try:
        os.write(writer, dumps(answer))
    except BrokenPipeError:  # nobody will start us, and we end in time
        pass
    os.close(writer)
