"""``glm2-orch hosts``: which hosts can work, and the quarantine of those that cannot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Set, Tuple

import click

from orchestrator.cli.output import console, output_option, print_json, say
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Inventory, Quarantined
    from orchestrator.runs.quarantine import Quarantine

_INVENTORY = click.option(
    "-i",
    "--inventory",
    "inventory_file",
    required=True,
    metavar="FILE",
    help="Inventory of servers (YAML), or the name of one that is shipped.",
)
_HOSTS = click.argument("names", nargs=-1, required=True, metavar="HOST...")


@click.group()
def hosts() -> None:
    """Show the hosts of a cluster, and keep bad ones out of later plans."""


@hosts.command("list")
@_INVENTORY
@output_option("table", "json")
def list_hosts(inventory_file: str, output: str) -> None:
    """Show every host, whether it works and why not."""
    from orchestrator.errors import HostNotReady
    from orchestrator.inventory import working_hosts

    inventory, quarantine = _open(inventory_file)
    entries = quarantine.entries()
    standing_in: Set[str] = set()
    try:
        working, notes = working_hosts(inventory, entries)
        standing_in = {host.name for host in working.hosts} - {h.name for h in inventory.hosts}
    except HostNotReady as error:  # no plan could be made now; the list says so
        notes = (error.message,)
    rows = _rows(inventory, entries, standing_in)
    if output == "json":
        print_json({"cluster": inventory.cluster, "hosts": rows, "notes": notes})
        return
    _table(rows)
    for note in notes:
        say(note)


@hosts.command("quarantine")
@_INVENTORY
@_HOSTS
@click.option("--reason", required=True, metavar="TEXT", help="Why; later plans say it.")
@click.option(
    "--for",
    "lasting",
    metavar="TIME",
    help="How long, e.g. 30m, 24h or 7d; default: until released.",
)
@output_option("table", "json")
def quarantine_hosts(
    inventory_file: str, names: Tuple[str, ...], reason: str, lasting: Optional[str], output: str
) -> None:
    """Keep hosts out of later plans; running jobs go on.

    HOST is a name, a pattern such as node[1-4], or a group. Spares take the places of these hosts.
    """
    from orchestrator.runs.quarantine import OPERATOR

    if not reason.strip():
        raise UsageError("--reason is empty", hint="say what is wrong with the host")
    inventory, quarantine = _open(inventory_file)
    chosen = _resolve(names, inventory)
    seconds = None if lasting is None else parse_duration(lasting)
    entries = quarantine.add(dict.fromkeys(chosen, reason), by=OPERATOR, lasting=seconds)
    for entry in entries:
        say(f"{entry.host} is quarantined {entry.ends}")
    _print_changed(entries, output)


@hosts.command()
@_INVENTORY
@_HOSTS
@output_option("table", "json")
def release(inventory_file: str, names: Tuple[str, ...], output: str) -> None:
    """Let quarantined hosts take part in plans again.

    HOST is a name, a pattern such as node[1-4], or a group. A host that is not quarantined is no
    error.
    """
    inventory, quarantine = _open(inventory_file)
    chosen = _resolve(names, inventory, also=[entry.host for entry in quarantine.entries()])
    released = quarantine.release(chosen)
    ended = {entry.host for entry in released}
    for name in chosen:
        say(f"{name} is released" if name in ended else f"{name} was not quarantined")
    _print_changed(released, output)


def parse_duration(text: str, option: str = "--for") -> float:
    """Seconds of ``90s``, ``30m``, ``24h``, ``7d`` or ``1d12h``. Raises UsageError.

    >>> parse_duration("1d12h") == 36 * 3600
    True
    """
    compact = text.replace(" ", "")
    parts = re.findall(r"(\d{1,6})([smhd])", compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UsageError(f"{option} {text!r} is not a time", hint="write e.g. 30m, 24h or 7d")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if not 1 <= seconds <= _LONGEST_S:
        raise UsageError(
            f"{option} {text!r} is not between a second and ten years",
            hint="write e.g. 7d" if option != "--for" else "leave it out: until released",
        )
    return float(seconds)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 3650 * 86_400


def _open(inventory_file: str) -> Tuple[Inventory, Quarantine]:
    from orchestrator.cli.request import read_inventory
    from orchestrator.runs.layout import home
    from orchestrator.runs.quarantine import Quarantine

    inventory = read_inventory(inventory_file, None)
    return inventory, Quarantine(home(), inventory.cluster)


def _resolve(names: Sequence[str], inventory: Inventory, also: Sequence[str] = ()) -> List[str]:
    """Hosts that names, patterns and groups stand for, in their order; ``also`` are known too."""
    from orchestrator.inventory import PatternError, expand
    from orchestrator.problems import nearest, shown

    listed = [*inventory.hosts, *inventory.spares]
    groups: Dict[str, List[str]] = {}
    for host in listed:
        for group in host.groups:
            groups.setdefault(group, []).append(host.name)
    known = {*(host.name for host in listed), *also}
    chosen: Dict[str, None] = {}
    for item in names:
        try:
            meant = groups[item] if item in groups else expand(item)
        except PatternError as error:
            raise UsageError(f"{shown(item)}: {error}", hint="write e.g. node[1-4]") from error
        for name in meant:
            if name not in known:
                raise UsageError(
                    f"{inventory.source} has no host or group {shown(name)}",
                    hint=nearest(name, [*known, *groups]),
                )
            chosen[name] = None
    return list(chosen)


def _rows(
    inventory: Inventory, entries: Sequence[Quarantined], standing_in: Set[str]
) -> List[Dict[str, Any]]:
    """One row a host, in the order of the file; hosts that left the inventory come last."""
    by_host = {entry.host: entry for entry in entries}
    roles = {host.name: "host" for host in inventory.hosts}
    for spare in inventory.spares:
        roles[spare.name] = "spare in use" if spare.name in standing_in else "spare"
    for entry in entries:
        roles.setdefault(entry.host, "not in the inventory")
    return [_row(name, role, by_host.get(name)) for name, role in roles.items()]


def _row(name: str, role: str, entry: Optional[Quarantined]) -> Dict[str, Any]:
    return {
        "host": name,
        "role": role,
        "state": "working" if entry is None else "quarantined",
        **_record(entry),
    }


def _record(entry: Optional[Quarantined]) -> Dict[str, Any]:
    keys = ("reason", "by", "since", "until")
    return {key: None if entry is None else getattr(entry, key) for key in keys}


def _print_changed(entries: Sequence[Quarantined], output: str) -> None:
    if output == "json":
        print_json({"hosts": [{"host": entry.host, **_record(entry)} for entry in entries]})


def _table(rows: Sequence[Dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from orchestrator.inventory import utc
    from orchestrator.logs.text import printable

    table = Table(box=None, pad_edge=False)
    for column in ("HOST", "ROLE", "STATE", "UNTIL", "BY", "SINCE", "REASON"):
        table.add_column(column, overflow="fold")
    for row in rows:
        until, since = row["until"], row["since"]
        quarantined = row["state"] == "quarantined"
        open_end = "released" if quarantined else "-"
        cells = (
            row["host"],
            row["role"],
            row["state"],
            open_end if until is None else utc(until),
            row["by"] or "-",
            "-" if since is None else utc(since),
            row["reason"] or "-",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(table)
