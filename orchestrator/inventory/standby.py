"""Hosts that stand by: a quarantined host is left out, and a spare takes its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Iterable, List, Optional, Sequence, Tuple

from orchestrator.errors import HostNotReady
from orchestrator.inventory.model import Host, Inventory


@dataclass(frozen=True)
class Quarantined:
    """One host that no job runs on for now. Times are seconds since 1970."""

    host: str
    """Name in the inventory."""
    reason: str
    by: str
    """``preflight``, ``operator``, or the id of the run that found it bad."""
    since: float
    until: Optional[float] = None
    """When it ends by itself; None: only when it is released."""

    def holds(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.until is None or now < self.until

    @property
    def ends(self) -> str:
        """When it ends, for people: ``until 2026-01-31 14:05 UTC`` or ``until released``."""
        return f"until {'released' if self.until is None else utc(self.until)}"


def working_hosts(
    inventory: Inventory, quarantined: Iterable[Quarantined]
) -> Tuple[Inventory, Tuple[str, ...]]:
    """The inventory without its quarantined hosts, and notes that say what was changed and why.

    Each one's place is taken by the first spare of the file that is not quarantined itself and
    has the same device target and number of devices. Ranks are numbered by ``server_id`` as
    always, so they move when a spare comes in. Raises HostNotReady, naming every quarantined
    host, when there is no spare left for one of them.
    """
    bad = {entry.host: entry for entry in quarantined}
    spares = [spare for spare in inventory.spares if spare.name not in bad]
    hosts: List[Host] = []
    notes: List[str] = []
    alone: List[Host] = []
    for host in inventory.hosts:
        if host.name not in bad:
            hosts.append(host)
            continue
        spare = next((spare for spare in spares if _fits(spare, host)), None)
        if spare is None:
            alone.append(host)
            continue
        spares.remove(spare)
        hosts.append(spare)
        entry = bad[host.name]
        notes.append(
            f"{host.name} is quarantined {entry.ends} ({entry.reason}); "
            f"{spare.name} takes its place"
        )
    if alone:
        raise _too_few(inventory, alone, bad.values(), spares)
    return replace(inventory, hosts=tuple(hosts), spares=tuple(spares)), tuple(notes)


def utc(wall: float) -> str:
    """A time for people, the same on every machine: ``2026-01-31 14:05 UTC``."""
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _fits(spare: Host, host: Host) -> bool:
    return spare.device_target == host.device_target and len(spare.devices) == len(host.devices)


def _too_few(
    inventory: Inventory,
    alone: Sequence[Host],
    quarantined: Iterable[Quarantined],
    spares: Sequence[Host],
) -> HostNotReady:
    known = {host.name for host in (*inventory.hosts, *inventory.spares)}
    out = [entry for entry in quarantined if entry.host in known]
    names = ", ".join(host.name for host in alone)
    unfit = f" that has devices like {names}" if spares else ""
    lines = [
        f"no spare{unfit} is left to take the place of {names}: "
        f"{len(inventory.hosts) - len(alone)} of {len(inventory.hosts)} hosts can work"
    ]
    lines += [f"  {e.host} is quarantined {e.ends} by {e.by}: {e.reason}" for e in out]
    without = ",".join(f"!{host.name}" for host in alone)
    return HostNotReady(
        "\n".join(lines),
        hint=f"release one that is well: glm2-orch hosts release -i {inventory.source} "
        f"{alone[0].name}; or add hosts to the group `spares`; or run on fewer: --limit "
        f"'{without}'",
    )
