"""The project's folders of data: in a checkout beside the package, once installed inside it."""

from __future__ import annotations

from pathlib import Path

import orchestrator


def resource_dir(name: str) -> Path:
    """Folder ``templates`` or ``inventories``, wherever this installation keeps it."""
    package = Path(orchestrator.__file__).parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installation has no folder {name} in or beside {package}")
