"""What is left of a run on this host, looked up anew: processes, ports, devices, shared memory
and the lock of its supervisor. Clean means that the next run finds nothing of this one.
"""

from __future__ import annotations

import fcntl
import os
import re

from . import holders, shared_memory
from .failure import NodeError
from .folder import Json, RunFolder, read_json
from .processes import Process, fields_of, open_files
from .spec import load

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Iterable, List, Optional, Set

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def make(folder: RunFolder, run_id: str, left: List[Process]) -> Json:
    """The certificate; ``left`` are the processes that even SIGKILL did not end."""
    lock = _lock(folder)
    found: Json = {
        "left": [{"pid": p.pid, "start_ticks": p.start_ticks, "command": p.name} for p in left],
        "ports": ports(process.pid for process in left),
        "devices": _devices(folder, run_id),
        "shared_memory": shared_memory.remaining(folder),
        "lock": lock,
    }
    found["clean"] = not any(found.values())
    return found


def ports(pids: Iterable[int]) -> List[int]:
    """TCP ports on which one of the processes listens."""
    held: Set[str] = set()
    for pid in pids:
        for target in open_files(pid):
            match = _SOCKET.match(target)
            if match is not None:
                held.add(match.group(1))
    found = set()
    for name in ("tcp", "tcp6") if held else ():
        for fields in fields_of("/proc/net/" + name):
            if len(fields) > 9 and fields[3] == _LISTEN and fields[9] in held:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found)


def _devices(folder: RunFolder, run_id: str) -> List[str]:
    """Leases of the run that are still held, by name."""
    try:
        spec = load(folder.spec)
    except NodeError:
        return []
    held = []
    for name in spec.leases:
        holder = holders.holder(holders.path_of(spec.workdir, name))
        if holder is not None and holder.get("run_id") == run_id:
            held.append(name)
    return held


def _lock(folder: RunFolder) -> Optional[Json]:
    """Who holds the supervisor's lock, or None."""
    try:
        descriptor = os.open(folder.lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return {"pid": (read_json(folder.lock) or {}).get("pid")}
    finally:
        os.close(descriptor)
    return None
