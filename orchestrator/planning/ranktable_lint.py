"""``check_table``: everything that is wrong with a rank table, each at its place.

``ranktable_forms`` has checked keys and types; here is what must hold between servers, devices and
ranks. All rules are in ``ranktable_rules``.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

from orchestrator.inventory import FOURS_OF_910, Host
from orchestrator.planning.addresses import Address, parse_ip
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.json_positions import Reading
from orchestrator.planning.ranktable import LONGEST_SERVER_ID, rank_order
from orchestrator.planning.ranktable_drift import check_drift
from orchestrator.planning.ranktable_fields import DeviceEntry
from orchestrator.planning.ranktable_forms import (
    CLOUD,
    V1_2,
    ServerEntry,
    TableFile,
    read_table,
)
from orchestrator.planning.ranktable_rules import Finding, Findings
from orchestrator.problems import shown


@dataclass(frozen=True)
class CheckedTable:
    """A rank table that was checked: what it holds as far as it could be read, and all findings."""

    name: str
    form: str
    """``1.0``, ``1.2``, ``group_list`` …; empty: not known."""
    servers: int
    devices: int
    findings: Tuple[Finding, ...]
    table: TableFile

    @property
    def errors(self) -> int:
        return sum(finding.is_error for finding in self.findings)


def check_table(
    data: bytes,
    name: str,
    *,
    hosts: Sequence[Host] = (),
    facts: Optional[Mapping[str, HostFacts]] = None,
    unasked: Mapping[str, str] = MappingProxyType({}),
) -> CheckedTable:
    """Check the rank table in ``data``, the content of the file ``name``.

    With ``facts`` of ``hosts`` it is also compared with what the hosts report (drift);
    ``unasked`` are the hosts that could not be asked, with the reason.
    """
    findings = Findings()
    text = _decoded(data, findings)
    if not name.endswith(".json"):
        findings.add("RT006", f"the name of the file, {shown(name)}, does not end in .json", 0)
    table = read_table(text, name, findings)
    if table.servers:
        _check_servers(table, findings)
        _check_devices(table, findings)
        _check_ips(table, findings)
        _check_wiring(table, findings)
        _check_ranks(table, findings)
        _check_super_pods(table, findings)
        _check_pods(table, findings)
    elif table.servers_at:
        findings.add("RT025", "no server is listed", table.servers_at)
    if facts is not None and table.servers:
        check_drift(table, hosts, facts, unasked, findings)
    return CheckedTable(
        name=name,
        form=table.form,
        servers=len(table.servers),
        devices=sum(len(server.devices) for server in table.servers),
        findings=findings.placed(name, table.reading),
        table=table,
    )


def unreadable(name: str, reason: str) -> CheckedTable:
    """The check of a file that could not be read; ``reason`` is what the system said."""
    findings = Findings()
    findings.add("RT007", f"cannot be read: {reason}", 0)
    table = TableFile(name, Reading(""))
    return CheckedTable(name, "", 0, 0, findings.placed(name, table.reading), table)


def _decoded(data: bytes, findings: Findings) -> str:
    """The text of a file; another encoding than UTF-8 is reported, and read all the same."""
    mend = "save the file as UTF-8"
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            findings.add("RT001", "this is UTF-16, not UTF-8", 0, mend)
            return data.decode("utf-16", "replace")
        before = len(data[: error.start].decode("utf-8"))
        findings.add("RT001", "this is not UTF-8", before, mend)
        return data.decode("utf-8", "replace")


_PLACEHOLDER = re.compile(r"[xX*?]+([.:_-][xX*?]+)*|.*\*.*|<.*>|your.*|-(\.-)*")


def _check_servers(table: TableFile, findings: Findings) -> None:
    first: Dict[str, ServerEntry] = {}
    for server in table.servers:
        server_id = server.server_id
        if not server.devices:
            findings.add("RT025", f"server {shown(server_id or '?')} lists no device", server.at)
        if server_id is None:
            continue
        if not 1 <= len(server_id) <= LONGEST_SERVER_ID:
            findings.add(
                "RT021", f"`server_id` has {len(server_id)} characters", server.server_id_at
            )
        elif _PLACEHOLDER.fullmatch(server_id):
            findings.add(
                "RT026",
                f"`server_id` {shown(server_id)} looks like a placeholder",
                server.server_id_at,
            )
        other = first.setdefault(server_id, server)
        if other is not server:
            line, _ = table.reading.place(other.server_id_at)
            findings.add(
                "RT022",
                f"`server_id` {shown(server_id)} is given again, first in line {line}",
                server.server_id_at,
            )


def _check_devices(table: TableFile, findings: Findings) -> None:
    counts: Dict[int, List[ServerEntry]] = {}
    allowed = _allowed_ids(table, findings)
    for server in table.servers:
        counts.setdefault(len(server.devices), []).append(server)
        seen: Set[int] = set()
        for device in server.devices:
            if device.device_id is None:
                continue
            if device.device_id not in allowed:
                findings.add(
                    "RT040",
                    f"`device_id` {device.device_id} does not exist on a server with "
                    f"{len(allowed)} devices",
                    device.device_id_at,
                )
            if device.device_id in seen:
                findings.add(
                    "RT041",
                    f"`device_id` {device.device_id} is given again on server {server.name}",
                    device.device_id_at,
                )
            seen.add(device.device_id)
        four = tuple(sorted(seen))
        if table.form != V1_2 and len(four) == 4 and four[-1] <= 7 and four not in FOURS_OF_910:
            said = "{" + ",".join(map(str, four)) + "}"
            findings.add("RT042", f"devices {said} of server {server.name}", server.at)
    if len(counts) > 1:
        usual = max(counts, key=lambda count: len(counts[count]))
        for count, servers in sorted(counts.items()):
            for server in servers if count != usual else ():
                findings.add(
                    "RT024",
                    f"server {server.name} has {count} devices, others {usual}",
                    server.at,
                )


def _allowed_ids(table: TableFile, findings: Findings) -> range:
    """Ids that a device may have: 0 to 7, unless these are servers with 16 devices.

    Those have two modules, devices 0 to 7 and 8 to 15; a job uses one of them, or the same
    devices of both. Ids above 7 on some servers alone are ranks written as devices, the guide's
    loop taken literally. Source: HCCL's guide on Atlas 200T A2 Box16.
    """
    if table.form == V1_2:
        return range(16)
    sets = {
        frozenset(d.device_id for d in server.devices if d.device_id is not None)
        for server in table.servers
    }
    ids = next(iter(sets))
    left, right = {i for i in ids if i < 8}, {i - 8 for i in ids if 8 <= i < 16}
    if len(sets) > 1 or not right or left not in (set(), right):
        return range(8)
    first = table.servers[0]
    findings.add("RT043", f"server {first.name} has devices above 7", first.at)
    return range(16)


def _check_ips(table: TableFile, findings: Findings) -> None:
    owners: Dict[str, DeviceEntry] = {}
    families: Dict[int, DeviceEntry] = {}
    lengths: Dict[int, List[DeviceEntry]] = {}
    several = len(table.servers) > 1
    for server in table.servers:
        for device in server.devices:
            if device.device_ip is None:
                if several:
                    whose = f"device {device.device_id} of server {server.name}"
                    findings.add("RT030", f"{whose} has no `device_ip`", device.at)
                continue
            texts = device.device_ip.split(",")
            lengths.setdefault(len(texts), []).append(device)
            for text in texts:
                address = _address(text, device, findings)
                if address is None:
                    continue
                families.setdefault(address.version, device)
                other = owners.setdefault(str(address), device)
                if other is not device:
                    line, _ = table.reading.place(other.device_ip_at)
                    findings.add(
                        "RT032",
                        f"`device_ip` {text} is used again, first in line {line}",
                        device.device_ip_at,
                    )
    if len(families) > 1:
        line, _ = table.reading.place(families[4].device_ip_at)
        findings.add("RT033", f"IPv6 here, but IPv4 in line {line}", families[6].device_ip_at)
    usual = max(lengths, key=lambda count: len(lengths[count]), default=1)
    for count, odd in lengths.items():
        for device in odd if count != usual else ():
            message = f"{count} address{'' if count == 1 else 'es'} here, but {usual} elsewhere"
            findings.add("RT034", message, device.device_ip_at)


def _address(text: str, device: DeviceEntry, findings: Findings) -> Optional[Address]:
    address = parse_ip(text)
    if address is None:
        why = "is not an IP address"
        if not text:
            why = "is empty"
        elif "*" in text or "x" in text.lower().replace("0x", ""):
            why = "has masked digits"
        elif not text.strip("-."):
            why = "is a placeholder: the tool that wrote it could not read the address"
        findings.add("RT031", f"`device_ip` {shown(text)} {why}", device.device_ip_at)
        return None
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        findings.add("RT035", f"`device_ip` {text} is no address of a NIC", device.device_ip_at)
    return address


def _check_wiring(table: TableFile, findings: Findings) -> None:
    """910A: devices k and k+4 on one subnet. The netmask is not known; /16 is the widest seen."""
    odd = [server for server in table.servers if table.form != V1_2 and _wired_apart(server)]
    if odd:
        pairs = ", ".join(f"{k} and {k + 4}" for k in _wired_apart(odd[0]))
        more = f", and such pairs of {len(odd) - 1} more servers" if len(odd) > 1 else ""
        message = f"devices {pairs} of server {odd[0].name}{more} share no subnet"
        findings.add("RT036", message, odd[0].at)


def _wired_apart(server: ServerEntry) -> List[int]:
    """Devices k of a whole 910 server whose partner k+4 is on another subnet."""
    nets: Dict[int, str] = {}
    for device in server.devices:
        if device.device_id is None or device.device_ip is None or device.device_ip.count(".") != 3:
            return []
        nets[device.device_id] = device.device_ip.rsplit(".", 2)[0]
    if len(nets) != 8 or max(nets) != 7:
        return []
    return [k for k in range(4) if nets[k] != nets[k + 4]]


def _check_ranks(table: TableFile, findings: Findings) -> None:
    if table.form == CLOUD:
        return
    first: Dict[int, DeviceEntry] = {}
    total = 0
    for server in table.servers:
        for device in server.devices:
            total += 1
            if device.rank_id is None:
                continue
            other = first.setdefault(device.rank_id, device)
            if other is not device:
                line, _ = table.reading.place(other.rank_id_at)
                findings.add(
                    "RT051",
                    f"`rank_id` {device.rank_id} is given again, first in line {line}",
                    device.rank_id_at,
                )
    if len(first) < total:
        return  # missing or repeated ones were reported; the rest would only repeat that
    beyond = [rank for rank in sorted(first) if rank >= total]
    missing = (rank for rank in range(total) if rank not in first)
    for rank, absent in zip(beyond, missing):  # as many: no rank is given twice
        findings.add(
            "RT052",
            f"`rank_id` {rank} is beyond the {total} ranks, while {absent} is missing",
            first[rank].rank_id_at,
        )
    if beyond:
        return
    _check_rank_order(table, findings)


def _check_rank_order(table: TableFile, findings: Findings) -> None:
    """Rank ids are whole: how do they run through the servers?"""
    runs: List[Tuple[int, ServerEntry]] = []
    interleaved = False
    for server in table.servers:
        ranks = [device.rank_id or 0 for device in server.devices]
        if not ranks:
            continue
        if max(ranks) - min(ranks) >= len(ranks):
            findings.add(
                "RT053", f"the ranks of server {server.name} do not follow one another", server.at
            )
            interleaved = True
            continue
        by_device = sorted(server.devices, key=lambda device: device.device_id or 0)
        if [device.rank_id for device in by_device] != sorted(ranks):
            findings.add(
                "RT054", f"ranks of server {server.name} are not in the order of devices", server.at
            )
        runs.append((min(ranks), server))
    if interleaved:
        return
    in_ranks = [server for _, server in sorted(runs, key=lambda run: run[0])]
    wanted = rank_order(in_ranks, lambda server: server.server_id or "")
    for server, should in zip(in_ranks, wanted):
        if server.server_id != should.server_id:
            findings.add(
                "RT023",
                f"ranks come to server {server.name} before {should.name}",
                server.server_id_at,
            )
            return


def _check_super_pods(table: TableFile, findings: Findings) -> None:
    if table.form != V1_2:
        return
    by_id = {server.server_id: server for server in table.servers if server.server_id}
    pod_of: Dict[str, str] = {}
    for pod in table.super_pods:
        seen: Dict[str, DeviceEntry] = {}
        for server_id, at in pod.servers:
            if server_id not in by_id:
                findings.add("RT081", f"server {shown(server_id)} is not in `server_list`", at)
                continue
            if server_id in pod_of:
                findings.add("RT081", f"server {shown(server_id)} is in two super pods", at)
                continue
            pod_of[server_id] = pod.super_pod_id
            for device in by_id[server_id].devices:
                _check_super_device(device, pod.super_pod_id, seen, findings)
    lost = [server for name, server in by_id.items() if name not in pod_of]
    for server in lost if table.super_pods else ():
        findings.add("RT081", f"server {server.name} is in no super pod", server.at)
    in_order = [(pod_of[name], server) for name, server in by_id.items() if name in pod_of]
    ended: Set[str] = set()
    for (before, _), (pod_id, server) in zip(in_order, in_order[1:]):
        if pod_id == before:
            continue
        ended.add(before)
        if pod_id in ended:
            findings.add("RT082", f"super pod {shown(pod_id)} goes on here", server.at)


def _check_super_device(
    device: DeviceEntry, pod: str, seen: Dict[str, DeviceEntry], findings: Findings
) -> None:
    super_id = device.super_device_id
    if super_id is None:
        return
    if not super_id.isdecimal():
        findings.add(
            "RT080", f"`super_device_id` {shown(super_id)} is no number", device.super_device_id_at
        )
    elif seen.setdefault(super_id, device) is not device:
        findings.add(
            "RT080",
            f"`super_device_id` {super_id} is given again in super pod {shown(pod)}",
            device.super_device_id_at,
        )


def _check_pods(table: TableFile, findings: Findings) -> None:
    numbers = [pod_number(pod) for pod, _ in table.pods]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and known != sorted(known):
        listed = ", ".join(pod for pod, _ in table.pods[:4])
        more = " …" if len(table.pods) > 4 else ""
        findings.add("RT071", f"pods are listed as {listed}{more}", table.pods_at)


def pod_number(pod: str) -> Optional[int]:
    """The number after the last dash of a pod's name, by which ModelArts orders pods, or None."""
    found = re.search(r"-([0-9]{1,9})\Z", pod)
    return int(found.group(1)) if found else None
