"""HCCL rank tables, version 1.0: build one a host, merge, write, read.

The order of ranks is decided here and nowhere else: servers in the dictionary order of their
``server_id`` (10.0.0.10 before 10.0.0.9, as MindSpore's documentation requires), devices within
a server in the order of their ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, TypeVar

from orchestrator.errors import RankTableError
from orchestrator.planning.addresses import Address, parse_ip
from orchestrator.problems import Problems, shown

LONGEST_SERVER_ID = 64

Extra = Tuple[Tuple[str, str], ...]
"""Further keys and values of an object, such as ``host_ip``, kept from the file it came from."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Device:
    """One device of a rank table. ``device_ip`` may be None on a single server only."""

    device_id: int
    device_ip: Optional[str]
    rank_id: int
    extra: Extra = ()


@dataclass(frozen=True)
class Server:
    """One server of a rank table."""

    server_id: str
    devices: Tuple[Device, ...]
    extra: Extra = ()
    origin: str = field(default="", compare=False)
    """Where it comes from (a host or file name), for messages."""


@dataclass(frozen=True)
class RankTable:
    """A rank table of version 1.0 whose status is ``completed``."""

    servers: Tuple[Server, ...]

    @property
    def world_size(self) -> int:
        return sum(len(server.devices) for server in self.servers)

    def to_json(self) -> str:
        """The table as HCCL reads it: every scalar a string, one device a line, stable bytes."""
        blocks = ",\n".join(_server_text(server) for server in self.servers)
        return (
            "{\n"
            '    "version": "1.0",\n'
            f'    "server_count": "{len(self.servers)}",\n'
            f'    "server_list": [\n{blocks}\n    ],\n'
            '    "status": "completed"\n'
            "}\n"
        )


def rank_order(items: Iterable[_T], server_id: Callable[[_T], str]) -> List[_T]:
    """``items`` in the order in which their servers' ranks are numbered.

    >>> rank_order(["10.0.0.9", "10.0.0.10"], lambda address: address)
    ['10.0.0.10', '10.0.0.9']
    """
    return sorted(items, key=server_id)


def host_table(
    server_id: str, device_ips: Mapping[int, Optional[str]], *, origin: str = ""
) -> RankTable:
    """The table of one server from its devices' IPs; its ranks start at 0.

    ``origin`` (a host or file name) is used in messages. Raises RankTableError for a bad
    ``server_id`` or device.
    """
    devices = tuple(
        Device(device_id, device_ips[device_id], rank)
        for rank, device_id in enumerate(sorted(device_ips))
    )
    table = RankTable((Server(server_id, devices, origin=origin or server_id),))
    problems = Problems()
    _check_server(table.servers[0], problems)
    problems.raise_any(RankTableError, f"the rank table of {origin or server_id}")
    return table


def merge(tables: Sequence[RankTable]) -> RankTable:
    """One table of all servers, ranks numbered anew; the order of ``tables`` does not matter.

    The same server may come twice if it says the same. Raises RankTableError with every conflict:
    a server given twice with different devices or further keys, a device IP used twice, missing
    or of another family, servers with different numbers of devices.
    """
    problems = Problems()
    servers: Dict[str, Server] = {}
    for server in (server for table in tables for server in table.servers):
        known = servers.setdefault(server.server_id, server)
        if known is server:
            continue
        differs = _difference(known, server)
        if differs:
            problems.add(
                f"server_id {shown(server.server_id)} is given by {known.origin} and by "
                f"{server.origin} with different {differs}",
                None,
                "give each server its own server_id, or leave out the outdated table",
            )
        elif _server_text(server) < _server_text(known):  # the same keys in another order
            servers[server.server_id] = server
    ordered = rank_order(servers.values(), lambda server: server.server_id)
    _check_together(ordered, problems)
    problems.raise_any(RankTableError, "the merged rank table")
    return number(ordered)


def number(servers: Iterable[Server]) -> RankTable:
    """``servers`` (in rank order) with rank ids 0..N-1."""
    numbered = []
    rank = 0
    for server in servers:
        devices = tuple(
            Device(device.device_id, device.device_ip, rank + i, device.extra)
            for i, device in enumerate(server.devices)
        )
        numbered.append(Server(server.server_id, devices, server.extra, server.origin))
        rank += len(devices)
    return RankTable(tuple(numbered))


def _check_server(server: Server, problems: Problems) -> None:
    if not server.server_id or len(server.server_id) > LONGEST_SERVER_ID:
        problems.add(
            f"server_id {shown(server.server_id)} of {server.origin} has "
            f"{len(server.server_id)} characters",
            None,
            f"HCCL allows 1 to {LONGEST_SERVER_ID}",
        )
    if not server.devices:
        problems.add(f"{server.origin} has no device", None, "name its devices, e.g. [0,8)")
    for device in server.devices:
        if device.device_ip is not None and None in _addresses(device):
            problems.add(
                f"device_ip {shown(device.device_ip)} of device {device.device_id} on "
                f"{server.origin} is not an IP address",
                None,
                f"read it on the host with `hccn_tool -i {device.device_id} -ip -g`",
            )


def _check_together(servers: Sequence[Server], problems: Problems) -> None:
    if not servers:
        problems.add("there is no server to make a rank table of")
        return
    owners: Dict[str, str] = {}
    families: Dict[int, str] = {}
    lengths: Dict[int, str] = {}
    for server in servers:
        _check_server(server, problems)
        missing = [d.device_id for d in server.devices if d.device_ip is None]
        if missing and len(servers) > 1:
            problems.add(
                f"{server.origin} has no device_ip for device "
                f"{', '.join(map(str, missing))}; with more than one server every device needs one",
                None,
                "see `glm2-orch facts`, or declare `device_ips` in the inventory",
            )
        for device in server.devices:
            addresses = [address for address in _addresses(device) if address is not None]
            if not addresses:
                continue
            me = f"device {device.device_id} of {server.origin}"
            lengths.setdefault(len(addresses), me)
            for address in addresses:
                other = owners.setdefault(str(address), me)
                if other != me:
                    problems.add(
                        f"device_ip {address} is used twice, by {other} and by {me}",
                        None,
                        "compare with `hccn_tool -i N -ip -g` on both",
                    )
                families.setdefault(address.version, me)
    if len(families) > 1:
        problems.add(
            f"device IPs mix families: IPv4 for {families[4]}, IPv6 for {families[6]}",
            None,
            "HCCL needs one family for all devices",
        )
    if len(lengths) > 1:
        said = ", ".join(f"{count} for {owner}" for count, owner in sorted(lengths.items()))
        problems.add(
            f"device_ip lists different numbers of addresses: {said}",
            None,
            "list the same number of addresses for each device",
        )
    _check_counts(servers, problems)


def _check_counts(servers: Sequence[Server], problems: Problems) -> None:
    by_count: Dict[int, List[str]] = {}
    for server in servers:
        by_count.setdefault(len(server.devices), []).append(server.origin)
    if len(by_count) > 1:
        parts = (
            f"{count} on {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
            for count, names in sorted(by_count.items(), key=lambda item: -len(item[1]))
        )
        problems.add(
            f"servers have different numbers of devices: {'; '.join(parts)}",
            None,
            "use the same number on each server",
        )


def _addresses(device: Device) -> List[Optional[Address]]:
    """The addresses of a device, one or a comma list; None for what is none."""
    return [] if device.device_ip is None else list(map(parse_ip, device.device_ip.split(",")))


def _difference(a: Server, b: Server) -> str:
    """In what two descriptions of one server differ, apart from the numbers of its ranks."""
    if [(d.device_id, d.device_ip) for d in a.devices] != [
        (d.device_id, d.device_ip) for d in b.devices
    ]:
        return "devices"
    keys = {key for key, _ in _further(a).items() ^ _further(b).items()}
    for mine, theirs in zip(a.devices, b.devices):
        keys |= {key for key, _ in dict(mine.extra).items() ^ dict(theirs.extra).items()}
    return ", ".join(sorted(keys))


_RESERVED = {"host_nic_ip": "reserve"}
"""What HCCL ignores and every public table has."""


def _further(server: Server) -> Dict[str, str]:
    return {**_RESERVED, **dict(server.extra)}


def _server_text(server: Server) -> str:
    devices = ",\n".join(f"                {_device_text(device)}" for device in server.devices)
    extra = _further(server)
    tail = ",\n".join(f"            {json.dumps(key)}: {json.dumps(extra[key])}" for key in extra)
    return (
        "        {\n"
        f'            "server_id": {json.dumps(server.server_id)},\n'
        f'            "device": [\n{devices}\n            ],\n'
        f"{tail}\n"
        "        }"
    )


def _device_text(device: Device) -> str:
    pairs = [("device_id", str(device.device_id))]
    if device.device_ip is not None:
        pairs.append(("device_ip", device.device_ip))
    pairs += [("rank_id", str(device.rank_id)), *device.extra]
    return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
