"""What is sent to a host besides the plan's own files: the node side and the worker's code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import List

import orchestrator.node
from orchestrator.errors import PlanError
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.transport.base import RemoteFile


def host_files(plan: Plan, host: HostPlan) -> List[RemoteFile]:
    """Every file of one host, with paths relative to its run folder."""
    files = [RemoteFile(item.path, item.text.encode(), None, item.mode) for item in host.files]
    files += node_files()
    if plan.ships_worker:
        files += _tree(worker_folder(), "code/glm2", ("*.py", "*.yaml"))
    return files


def node_files() -> List[RemoteFile]:
    """The node side, as it is."""
    return _tree(Path(orchestrator.node.__path__[0]), "node", ("*.py",))


def worker_folder() -> Path:
    """Folder of the ``glm2`` package, found without importing it."""
    spec = importlib.util.find_spec("glm2")
    if spec is None or not spec.submodule_search_locations:
        raise PlanError(
            "the package glm2 is not installed beside orchestrator",
            hint="install glm2-orch whole, or give --worker-command",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _tree(folder: Path, prefix: str, patterns: tuple[str, ...]) -> List[RemoteFile]:
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    return [
        RemoteFile(f"{prefix}/{path.relative_to(folder).as_posix()}", source=path) for path in found
    ]
