"""Modules of ``orchestrator.node`` as one program, which is sent over standard input: nothing is
left on the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import orchestrator.node

_PROGRAM = """\
import json, sys, types
package = types.ModuleType("glm2_node")
package.__path__ = []
sys.modules["glm2_node"] = package
for name, source in json.loads({modules!r}):
    module = types.ModuleType("glm2_node." + name)
    module.__package__ = "glm2_node"
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
{run}
"""


def shipped(modules: Sequence[str], run: str) -> bytes:
    """A program (ASCII) that has the ``modules``, each after those it imports, in ``package`` and
    ends with the line ``run``."""
    folder = Path(orchestrator.node.__path__[0])
    sources = [(name, (folder / f"{name}.py").read_text("utf-8")) for name in modules]
    return _PROGRAM.format(modules=json.dumps(sources), run=run).encode("ascii")
