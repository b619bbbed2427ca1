"""What the processes of a run keep in shared memory: noted while they live, looked for later."""

from __future__ import annotations

import os

from .folder import Json, RunFolder, read_json, replace_json
from .processes import fields_of, open_files

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Iterable, List, Set

FOLDER = "/dev/shm"
FILE = "shared_memory.json"


class Notes:
    """The files below /dev/shm that processes of the run have, or had, mapped or open.

    Only those made after ``since`` (Unix seconds): what lay there before, such as a data set that
    a user keeps in memory, is not the run's.
    """

    def __init__(self, folder: RunFolder, since: float) -> None:
        self._path = os.path.join(folder.path, FILE)
        self._since = since
        self._known: Set[str] = set()

    def take(self, pids: Iterable[int]) -> None:
        """Look at these processes. Raises OSError when the notes cannot be written."""
        found = {path for pid in pids for path in held(pid) if self._is_ours(path)}
        if not found <= self._known:
            self._known |= found
            replace_json(self._path, {"files": sorted(self._known)})

    def _is_ours(self, path: str) -> bool:
        try:
            return os.stat(path).st_ctime >= self._since
        except OSError:  # removed already, as it should be
            return False


def held(pid: int) -> Set[str]:
    """Files below /dev/shm that the process has mapped or open."""
    maps = fields_of("/proc/%d/maps" % pid, 5)
    names = [fields[5] for fields in maps if len(fields) == 6]
    return {name for name in (*names, *open_files(pid)) if name.startswith(FOLDER + "/")}


def remaining(folder: RunFolder) -> List[Json]:
    """What the run noted and is still there."""
    noted = read_json(os.path.join(folder.path, FILE)) or {}
    found = []
    for path in noted.get("files", []):
        try:
            found.append({"path": path, "bytes": os.stat(path).st_size})
        except OSError:
            continue
    return found
