"""``arm``: from a command over SSH to a process in the background that waits for ``start``."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from typing import List, NoReturn

from . import control, journal, leases, processes, stopping
from .failure import NodeError
from .folder import Json, RunFolder, append_only
from .leases import Lock
from .spec import Spec, load
from .supervision import Supervision


def arm(folder: RunFolder, start_timeout: float) -> Json:
    """Start the supervisor in the background; returns its answer once it is really ready.

    Raises NodeError: ``spec``; ``busy`` when the folder or a device is held or the folder was
    used before; ``host-not-ready`` when the folder cannot be written.
    """
    spec = load(folder.spec)
    # Before the leases are taken: what an earlier run left behind still holds them.
    swept = stopping.sweep_leftovers(spec.workdir, but=folder.path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach(folder, spec, start_timeout, writer)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise NodeError("error", "the supervisor died while arming", f"see {folder.supervisor_log}")
    answer: Json = json.loads(line.decode("ascii"))
    if "error" in answer:
        raise NodeError(**answer["error"])
    return dict(answer, swept=swept)


def _detach(folder: RunFolder, spec: Spec, start_timeout: float, writer: int) -> NoReturn:
    """The classic double fork: not a child of anybody's shell, not a session leader."""
    status = 1
    try:
        os.setsid()
        status = _supervise(folder, spec, start_timeout, writer) if os.fork() == 0 else 0
    except BaseException:
        _print_exception()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _supervise(folder: RunFolder, spec: Spec, start_timeout: float, writer: int) -> int:
    locks: List[Lock] = []
    try:
        os.chdir(folder.path)
        _leave_the_terminal(folder, keep=writer)
        locks = _take_locks(folder, spec)
        subreaper = processes.become_subreaper()
        listener = control.listen()
        supervision = Supervision(folder, spec, locks[1:])
        answer = supervision.arm(start_timeout, subreaper)
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
        _print_exception()
        supervision.abort(f"internal error of the supervisor: {type(error).__name__}: {error}")
        return 1
    finally:
        listener.close()
        with contextlib.suppress(OSError):  # somebody removed the folder
            os.unlink(control.SOCKET)
        _release(locks)
    return 0


def _leave_the_terminal(folder: RunFolder, keep: int) -> None:
    """Hold nothing of the session that armed us, or its SSH channel would never close."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = append_only(folder.supervisor_log)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = 65536 if limit == resource.RLIM_INFINITY else min(limit, 65536)
    os.closerange(3, keep)
    os.closerange(keep + 1, limit)


def _take_locks(folder: RunFolder, spec: Spec) -> List[Lock]:
    """The lock on the folder first, then the leases. All or none."""
    me = processes.read(os.getpid())
    holder: Json = {
        "run_id": spec.run_id,
        "host": spec.host,
        "pid": os.getpid(),
        "start_ticks": me.start_ticks if me else 0,
        "boot_id": processes.boot_id(),
        "since": time.time(),
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
    with contextlib.suppress(BrokenPipeError):  # nobody will start us, and we end in time
        os.write(writer, json.dumps(answer).encode("ascii") + b"\n")
    os.close(writer)


def _print_exception() -> None:
    import traceback  # here, because arming is to be quick

    traceback.print_exc()
