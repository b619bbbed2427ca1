"""Which staged trees of a host are still wanted; the others can be removed.

The controller sends it on standard input (``engine/retention.py``); nothing of it is left on the
host. A tree stays when the request names it, when it was staged or found whole within ``age_s``,
while it is being filled, and while a run lives whose files name it or a link to it. Links that
lead into a tree go with it. Standard library, Python 3.7 and newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import time
from typing import Any, Dict, List, Optional

_NAME = re.compile(r"([0-9a-f]{64})(\.partial|\.removed)?")
_REMOVED = ".removed"


def look(request: Dict[str, Any]) -> Dict[str, Any]:
    """Answer ``{"workdir","keep":[digest…],"age_s","remove":bool}`` with all trees:
    ``{"trees":[{"digest","bytes","used":wall,"kept":why or null,"error":text or null}]}``."""
    staged = os.path.join(request["workdir"], "staged")
    trees: List[Dict[str, Any]] = []
    living = _files_of_living_runs(request["workdir"])
    for name in sorted(os.listdir(staged)) if os.path.isdir(staged) else ():
        match = _NAME.fullmatch(name)
        folder = os.path.join(staged, name)
        if match is None or os.path.islink(folder):
            continue
        digest = match.group(1)
        tree = {"digest": digest, "bytes": _bytes(folder), "used": os.stat(folder).st_mtime}
        links = _links(folder)
        kept: Optional[str] = None
        if match.group(2) != _REMOVED:  # else a removal that was cut
            kept = _why_kept(folder, digest, [digest, *links], living, request)
        error = None
        if kept is None and request["remove"]:
            try:
                _remove(folder, os.path.join(staged, digest), links)
            except OSError as failure:
                error = "cannot be removed: {}".format(failure.strerror)
        trees.append(dict(tree, kept=kept, error=error))
    return {"trees": trees}


def _why_kept(
    folder: str, digest: str, names: List[str], living: List[str], request: Dict[str, Any]
) -> Optional[str]:
    if digest in request["keep"]:
        return "this inventory stages it"
    if any(name in text for name in names for text in living):
        return "a living run uses it"
    if time.time() - os.stat(folder).st_mtime < request["age_s"]:
        return "used lately"
    return "it is being filled" if _is_locked(folder, os.O_RDONLY) else None


def _files_of_living_runs(workdir: str) -> List[str]:
    """What the runs were given whose supervisors live, as text."""
    found = []
    for lock in glob.glob(os.path.join(glob.escape(workdir), "runs", "*", "supervisor.lock")):
        if not _is_locked(lock, os.O_RDWR):
            continue
        run = glob.escape(os.path.dirname(lock))
        for pattern in ("spec.json", "job.yaml", os.path.join("ranks", "*", "*.sh")):
            for path in glob.glob(os.path.join(run, pattern)):
                with contextlib.suppress(OSError), open(path, "rb") as file:
                    found.append(file.read().decode("utf-8", "replace"))
    return found


def _links(folder: str) -> List[str]:
    """Paths outside, where links to the tree were made."""
    try:
        with open(os.path.join(folder, "places.json"), encoding="utf-8") as file:
            return [path for path in json.load(file) if isinstance(path, str)]
    except (OSError, ValueError, TypeError):
        return []


def _is_locked(path: str, flags: int) -> bool:
    try:
        handle = os.open(path, flags)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _bytes(folder: str) -> int:
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _remove(folder: str, final: str, links: List[str]) -> None:
    """Under another name first: a tree is whole or it is not there, whatever happens meanwhile."""
    gone = final + _REMOVED
    if folder != gone:
        if os.path.isdir(gone):
            shutil.rmtree(gone)
        os.rename(folder, gone)
    for link in links:
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(final + os.sep):
                os.unlink(link)
    shutil.rmtree(gone)
