"""What is sent to a host besides the plan's own files: the node side and the worker's code."""

from __future__ import annotations

import importlib.util
import py_compile
import tempfile
from functools import cache
from pathlib import Path
from typing import List

import orchestrator.node
from orchestrator.errors import PlanError
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.transport.base import RemoteFile

_NOT_COMPILED = ("catalogue", "preflight", "probe", "relay", "sender", "staged", "unpack")
"""Programs that are never run from the run folder, but sent when they are wanted."""


def host_files(plan: Plan, host: HostPlan) -> List[RemoteFile]:
    """Every file of one host, with paths relative to its run folder."""
    files = [RemoteFile(item.path, item.text.encode(), None, item.mode) for item in host.files]
    files += node_files()
    if plan.ships_worker:
        files += _tree(worker_folder(), "code/glm2", ("*.py", "*.yaml"))
    return files


def node_files() -> List[RemoteFile]:
    """The node side as it is, and compiled: to a host whose Python is of our version, compiling
    costs as much as all else that arming does. Any other passes over what it cannot read."""
    folder = Path(orchestrator.node.__path__[0])
    files = _tree(folder, "node", ("*.py",))
    for source in sorted(folder.glob("*.py")):
        if source.stem not in _NOT_COMPILED:
            cached = Path(importlib.util.cache_from_source(f"node/{source.name}"))
            files.append(RemoteFile(f"node/__pycache__/{cached.name}", _compiled(source)))
    return files


def worker_folder() -> Path:
    """Folder of the ``glm2`` package, found without importing it."""
    spec = importlib.util.find_spec("glm2")
    if spec is None or not spec.submodule_search_locations:
        raise PlanError(
            "the package glm2 is not installed beside orchestrator",
            hint="install glm2-orch whole, or give --worker-command",
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _compiled(source: Path) -> bytes:
    """The content of its .pyc file, which is not compared with the source again (PEP 552)."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "compiled.pyc")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(
            str(source), str(compiled), source.name, doraise=True, invalidation_mode=mode
        )
        return compiled.read_bytes()


def _tree(folder: Path, prefix: str, patterns: tuple[str, ...]) -> List[RemoteFile]:
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    return [
        RemoteFile(f"{prefix}/{path.relative_to(folder).as_posix()}", source=path) for path in found
    ]
