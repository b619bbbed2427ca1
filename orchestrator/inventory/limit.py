"""``--limit``: the part of an inventory that a command is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Set

from orchestrator.errors import UsageError
from orchestrator.inventory.model import Host, Inventory
from orchestrator.inventory.patterns import PatternError, expand, split
from orchestrator.problems import nearest, shown

ALL = "all"
"""Names every host but the spares."""


def limit(inventory: Inventory, pattern: str) -> Inventory:
    """The inventory with only the hosts that ``pattern`` selects, in their order.

    ``pattern`` is a comma-separated list of host names, host patterns and group names; ``!``
    before an item takes it away again; only exclusions means all hosts but those. A spare host
    that is selected counts as an ordinary host. Raises UsageError for a name that is not in the
    inventory, and when nothing is left.
    """
    known: Dict[str, Host] = {host.name: host for host in (*inventory.hosts, *inventory.spares)}
    groups: Dict[str, List[str]] = {ALL: [host.name for host in inventory.hosts]}
    for host in known.values():
        for group in host.groups:
            groups.setdefault(group, []).append(host.name)
    chosen: Set[str] = set()
    dropped: Set[str] = set()
    inclusive = False
    for item, _ in split(pattern):
        exclude = item.startswith("!")
        names = _names(item[1:].strip() if exclude else item, pattern, known, groups, inventory)
        inclusive = inclusive or not exclude
        (dropped if exclude else chosen).update(names)
    if not inclusive:
        chosen.update(groups[ALL])
    chosen -= dropped
    hosts = tuple(host for host in known.values() if host.name in chosen)
    if not hosts:
        raise UsageError(
            f"--limit {shown(pattern)} leaves no host of {inventory.source}",
            hint="select at least one host",
        )
    spares = tuple(h for h in inventory.spares if h.name not in chosen and h.name not in dropped)
    return replace(inventory, hosts=hosts, spares=spares)


def _names(
    item: str,
    pattern: str,
    known: Dict[str, Host],
    groups: Dict[str, List[str]],
    inventory: Inventory,
) -> List[str]:
    if item in groups:
        return groups[item]
    try:
        names = expand(item)
    except PatternError as error:
        raise UsageError(
            f"--limit {shown(pattern)}: {error}", hint="write e.g. node[1-4],!node3"
        ) from error
    missing = [name for name in names if name not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(
            f"--limit {shown(pattern)}: {inventory.source} has no host or group "
            f"{shown(missing[0])}{more}",
            hint=nearest(missing[0], [*known, *groups]),
        )
    return names
