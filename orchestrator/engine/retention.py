"""Staged trees on hosts that nothing needs any more: found, and removed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.engine.hosts import on_each
from orchestrator.engine.shipped import shipped
from orchestrator.errors import HostNotReady
from orchestrator.inventory import Host
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import Outcome

_SECONDS = 900.0
"""For a host to remove terabytes."""
_YEAR_9000 = 221_845_392_000.0


@dataclass(frozen=True)
class StagedTree:
    """One tree of a host, whole or not."""

    host: str
    digest: str
    bytes: int
    used: float
    """When a transfer or a launch last wanted it: the host's clock, in seconds."""
    kept: Optional[str]
    """Why it stays; None: it is old, and removed when that was asked for."""
    error: Optional[str]
    """Why it could not be removed."""


def old_trees(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    keep: Sequence[str],
    age_s: float,
    *,
    remove: bool,
    progress: Optional[Callable[[str], None]] = None,
) -> List[Outcome[Tuple[StagedTree, ...]]]:
    """All staged trees of each host, and which of them have been of no use for ``age_s``.

    With ``remove`` those go. Trees whose digests are in ``keep``, and those that living runs use,
    stay whatever their age. Hosts that share a workdir are asked once.
    """
    first: Dict[str, Host] = {}
    for host in hosts:
        first.setdefault(host.shared_workdir or f"{host.name}:{host.workdir}", host)
    asked = {host.name: host for host in first.values()}
    chosen = {name: transports[name] for name in asked}

    def ask(transport: Transport) -> Tuple[StagedTree, ...]:
        host = asked[transport.name]
        request = {"workdir": host.workdir, "keep": list(keep), "age_s": age_s, "remove": remove}
        done = transport.run([host.python, "-"], stdin=_program(request), timeout=_SECONDS)
        try:
            said = json.loads(done.stdout.decode("utf-8").splitlines()[-1])
            return tuple(_tree(host.name, one) for one in said["trees"])
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [str(error)])[-1]
            raise HostNotReady(
                f"it does not say what is staged there: {last}",
                hint=f"check the workdir {host.workdir} and Python {host.python} on the host",
                host=host.name,
            ) from None

    return on_each(chosen, "looking for old files", ask, progress)


def _program(request: Mapping[str, Any]) -> bytes:
    run = f"print(json.dumps(package.retention.look(json.loads({json.dumps(request)!r}))))"
    return shipped(("retention",), run)


def _tree(host: str, said: Mapping[str, Any]) -> StagedTree:
    """Raises ValueError, LookupError or TypeError for what no host of ours says."""
    texts = [said[key] for key in ("kept", "error")]
    used = float(said["used"])
    if re.fullmatch("[0-9a-f]{64}", said["digest"]) is None or not 0 <= used < _YEAR_9000:
        raise ValueError(f"it names a tree {said['digest']!r} that was used at {used}")
    size = said["bytes"]
    if not isinstance(size, int):
        raise TypeError(f"a size of {size!r}")
    shown = (None if text is None else str(text) for text in texts)
    return StagedTree(host, said["digest"], size, used, *shown)
