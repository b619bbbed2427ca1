"""Who holds the devices of this host. Stands alone: it is also run from standard input, before
anything of ours is on the host (``python3 - WORKDIR LEASE... < holders.py``).

Prints ``{"held": [{"lease", "run_id", "host", "pid", "since"}]}``.
"""

from __future__ import annotations

import fcntl
import os
import sys

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional


def path_of(workdir: str, name: str) -> str:
    """The lock file of the lease ``name`` on this host.

    The host's own name is in it, because hosts may share a workdir; not that of an inventory,
    because two inventories may call one host by two names.
    """
    return os.path.join(workdir, "leases", "{}.{}.lock".format(os.uname().nodename, name))


def holder(path: str) -> Optional[Dict[str, Any]]:
    """Who has the lock, as it wrote itself down; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _note(os.pread(descriptor, 4096, 0))
    finally:
        os.close(descriptor)
    return None


def held(workdir: str, names: List[str]) -> List[Dict[str, Any]]:
    """The leases among ``names`` that somebody holds."""
    found = []
    for name in names:
        note = holder(path_of(workdir, name))
        if note is not None:
            entry: Dict[str, Any] = {"lease": name}
            entry.update({key: note.get(key) for key in ("run_id", "host", "pid", "since")})
            found.append(entry)
    return found


def _note(data: bytes) -> Dict[str, Any]:
    import json  # here, because of light.py

    try:
        note = json.loads(data.decode("utf-8", "replace"))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


if __name__ == "__main__":
    import json

    print(json.dumps({"held": held(sys.argv[1], sys.argv[2:])}))
