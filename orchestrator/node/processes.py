"""Processes as /proc shows them: who is alive, who belongs to a run, and how to signal them.

A process is known by its pid and its start time together (``start_ticks``, clock ticks since
boot): a pid alone may have been given to somebody else. Source: proc(5), prctl(2).
"""

from __future__ import annotations

import os
import time

from .light import signal

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EXEC_S = 2.0
_EXEC_POLL_S = 0.005
_PF_KTHREAD = 0x00200000
_CHUNK = 1 << 16


class Process:
    """One line of /proc/PID/stat."""

    def __init__(self, pid: int, ppid: int, start_ticks: int, state: str, name: str) -> None:
        self.pid = pid
        self.ppid = ppid
        self.start_ticks = start_ticks
        self.state = state
        """One letter; Z is a process that ended and was not waited for."""
        self.name = name

    @property
    def alive(self) -> bool:
        return self.state not in "ZXx"


if TYPE_CHECKING:
    Table = Dict[int, Process]
else:
    Table = dict


def parse_stat(data: bytes) -> Process:
    """/proc/PID/stat -> Process. The name may hold blanks, parentheses and line ends."""
    head, _, tail = data.rpartition(b")")
    pid, _, name = head.partition(b" (")
    fields = tail.split()
    return Process(
        pid=int(pid),
        ppid=int(fields[1]),
        start_ticks=int(fields[19]),
        state=fields[0].decode("ascii"),
        name=name.decode("utf-8", "replace"),
    )


def read(pid: int) -> Optional[Process]:
    """The process with this pid now; None when there is none."""
    try:
        return parse_stat(_contents(pid, "stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def table() -> Table:
    """All processes of the host, by pid."""
    found = (read(pid) for pid in pids())
    return {process.pid: process for process in found if process is not None}


def pids() -> List[int]:
    """Of all processes of the host."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def identity() -> Dict[str, Any]:
    """This very process: ``pid``, ``start_ticks`` and ``boot_id``."""
    me = read(os.getpid())
    ticks = me.start_ticks if me else 0
    return {"pid": os.getpid(), "start_ticks": ticks, "boot_id": boot_id()}


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    process = read(pid)
    return process is not None and process.start_ticks == start_ticks and process.alive


def descendants(roots: Iterable[int], processes: Table) -> Set[int]:
    """Pids below ``roots``, without the roots themselves."""
    children: Dict[int, List[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
    found: Set[int] = set()
    waiting = list(roots)
    while waiting:
        for pid in children.get(waiting.pop(), []):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def ancestors(pid: int, processes: Table) -> Set[int]:
    """``pid`` and the pids above it."""
    found: Set[int] = set()
    while pid in processes and pid not in found:
        found.add(pid)
        pid = processes[pid].ppid
    return found


def carries(pid: int, run_id: str, run_dir: str) -> bool:
    """Whether the process was started with the GLM2_RUN_ID and GLM2_RUN_DIR of this run.

    The folder counts too, because several hosts of a run may share one machine.
    """
    found = marks(pid, patient=True)
    return (
        found is not None
        and found[0] == run_id
        and os.path.realpath(found[1]) == os.path.realpath(run_dir)
    )


def marks(pid: int, patient: bool = False) -> Optional[Tuple[str, str]]:
    """GLM2_RUN_ID and GLM2_RUN_DIR that the process was started with; None: it has not both.

    Processes of other users cannot be read and do not belong to us. In the midst of exec a process
    has no environment for a moment; ``patient``: its end is waited for.
    """
    try:
        data = _contents(pid, "environ")
        if patient and not data:
            data = _after_exec(pid)
    except OSError:
        return None
    if b"GLM2_RUN_ID=" not in data:  # as nearly always
        return None
    variables = data.split(b"\0")
    # As in an environment with a name twice, the last one wins.
    found = dict(variable.partition(b"=")[::2] for variable in variables)
    run_id, run_dir = found.get(b"GLM2_RUN_ID"), found.get(b"GLM2_RUN_DIR")
    return (os.fsdecode(run_id), os.fsdecode(run_dir)) if run_id and run_dir else None


def _after_exec(pid: int) -> bytes:
    """The environment of a process that had none a moment ago. Until exec has written it there is
    no command line either; the kernel's threads, and zombies, never have one. Raises OSError."""
    until = time.monotonic() + _EXEC_S
    while not _contents(pid, "cmdline"):
        state, *fields = _contents(pid, "stat").rpartition(b")")[2].split()
        if state in (b"Z", b"X", b"x") or int(fields[5]) & _PF_KTHREAD:
            return b""
        if time.monotonic() >= until:
            break
        time.sleep(_EXEC_POLL_S)
    return _contents(pid, "environ")


def _contents(pid: int, name: str) -> bytes:
    """At the least cost: it may be read of hundreds of processes."""
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    try:
        data = part = os.read(descriptor, _CHUNK)
        while len(part) == _CHUNK:
            part = os.read(descriptor, _CHUNK)
            data += part
    finally:
        os.close(descriptor)
    return data


def all_marks() -> Set[Tuple[str, str]]:
    """Of all processes of the host, as ``marks`` has them."""
    found = map(marks, pids())
    return {mark for mark in found if mark is not None}


def open_files(pid: int) -> List[str]:
    """What the descriptors of the process lead to; empty when it is gone or not ours."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = []
    for name in names:
        try:
            found.append(os.readlink(os.path.join(folder, name)))
        except OSError:  # closed in the meantime
            continue
    return found


def fields_of(path: str, most: int = -1) -> List[List[str]]:
    """The lines of a file of /proc, cut at blanks at most ``most`` times; empty when unreadable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n").split(None, most) for line in file]
    except OSError:
        return []


def members(
    run_id: str, run_dir: str, supervisor: Optional[int] = None, spare: Iterable[int] = ()
) -> List[Process]:
    """All living processes of a run: marked in their environment or below its supervisor, and
    all below those. Without the supervisor itself and without ``spare``.

    None is the answer only when none is found twice: one may have been started by one that ended
    while we looked.
    """
    spared = set(spare) | {supervisor}
    found = _members_now(run_id, run_dir, supervisor, spared)
    return found or _members_now(run_id, run_dir, supervisor, spared)


def _members_now(
    run_id: str, run_dir: str, supervisor: Optional[int], spared: Set[Optional[int]]
) -> List[Process]:
    processes = table()
    roots = {pid for pid in processes if carries(pid, run_id, run_dir)}
    if supervisor is not None:
        roots.add(supervisor)
    found = (roots | descendants(roots, processes)) - spared
    return [processes[pid] for pid in sorted(found) if processes[pid].alive]


def tops(found: Iterable[Process]) -> List[Process]:
    """Those whose parent is not among ``found``: whom to ask to end, so that a rank which still
    saves keeps its helpers. A helper is asked when it has lost its parent."""
    found = list(found)
    pids = {process.pid for process in found}
    return [process for process in found if process.ppid not in pids]


def send(process: Process, signum: int) -> bool:
    """Signal this very process; False when it has ended or is not ours to signal."""
    try:
        pidfd = os.pidfd_open(process.pid)  # type: ignore[attr-defined,unused-ignore]
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # Python < 3.9, or a kernel before 5.3
        pidfd = None
    try:
        if not is_alive(process.pid, process.start_ticks):
            return False
        if pidfd is None:
            os.kill(process.pid, signum)
        else:
            signal.pidfd_send_signal(pidfd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return True


def boot_id() -> str:
    """Changes with each boot: pids and start times are worth nothing across boots."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # some containers hide it
        return ""


def signal_name(signum: int) -> str:
    from signal import Signals  # here, because of light.py

    try:
        return Signals(signum).name
    except ValueError:  # real-time signals have no names
        return f"SIG{signum}"


def become_subreaper() -> bool:
    """From now on orphans among our descendants become our children; False where unsupported."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Ask for SIGKILL when the thread that created us ends; False where unsupported."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    try:
        import ctypes  # here, because of light.py

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # no libffi: the scan of /proc remains
        return False
    return bool(prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)
