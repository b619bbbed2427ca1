"""Rank tables as they come in files: which form one has, and its servers and devices with places.

``read_table`` reads all forms into one shape, and reports what breaks the form itself (keys,
types, counts). What must hold between servers and devices is for ``ranktable_lint``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from orchestrator.planning.json_positions import Object, Reading, Scalar, Value, read_json
from orchestrator.planning.ranktable_fields import (
    GROUP_KEYS,
    INSTANCE_KEYS,
    SERVER_KEYS,
    TOP_KEYS,
    DeviceEntry,
    Fields,
)
from orchestrator.planning.ranktable_rules import Findings
from orchestrator.problems import shown

CLOUD, LAB, V1_0, V1_1, V1_2, V2_0 = "group_list", "group_list (lab)", "1.0", "1.1", "1.2", "2.0"
CHECKED = (CLOUD, LAB, V1_0, V1_2)


@dataclass
class ServerEntry:
    """One server as written; in a group_list, all instances on it together."""

    at: int
    server_id: Optional[str] = None
    server_id_at: int = 0
    devices: List[DeviceEntry] = field(default_factory=list)
    extra: Tuple[Tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The server_id, fit for a message."""
        return "?" if self.server_id is None else shown(self.server_id)


@dataclass
class SuperPodEntry:
    """One super pod of version 1.2: its id, and the server ids that it names with their places."""

    at: int
    super_pod_id: str = ""
    servers: List[Tuple[str, int]] = field(default_factory=list)


@dataclass
class TableFile:
    """A rank table read from a file."""

    name: str
    reading: Reading
    form: str = ""
    """One of the forms above; empty: not known."""
    servers: List[ServerEntry] = field(default_factory=list)
    super_pods: List[SuperPodEntry] = field(default_factory=list)
    servers_at: int = 0
    pods: List[Tuple[str, str]] = field(default_factory=list)
    """Of a group_list: name of each instance's pod and its server_id, in the order of the list."""
    pods_at: int = 0


_FAULT_CODES = {"comment": "RT002", "ellipsis": "RT003", "bracket": "RT004", "repeated": "RT005"}


def read_table(text: str, name: str, findings: Findings) -> TableFile:
    """The rank table in ``text``, as far as it can be read."""
    reading = read_json(text)
    table = TableFile(name, reading)
    for fault in reading.faults:
        code = _FAULT_CODES.get(fault.kind, "RT001")
        findings.add(code, fault.message, fault.at, fault.hint)
    root = reading.root
    if root is None:
        return table
    if not isinstance(root, Object):
        findings.add("RT013", "a rank table is an object, `{…}`", root.at, "write `{…}`")
        return table
    fields = Fields(findings)
    fields.spelling(root, TOP_KEYS)
    table.form = _form(root, fields)
    if table.form in (V1_0, V1_2):
        fields.status(root)
        _server_list(root, table, fields)
    elif table.form in (CLOUD, LAB):
        fields.status(root)
        _group_list(root, table, fields)
    return table


def _form(root: Object, fields: Fields) -> str:
    version = root.members.get("version")
    if version is None:
        if "group_list" in root.members:
            mode = root.members.get("deploy_mode")
            return LAB if isinstance(mode, Scalar) and mode.value == "lab" else CLOUD
        fields.findings.add("RT010", "there is neither a `version` nor a `group_list`", root.at)
        return V1_0 if "server_list" in root.members else ""
    text = str(version.value) if isinstance(version, Scalar) else ""
    if text not in (V1_0, V1_1, V1_2, V2_0):
        fields.findings.add("RT010", f"version {shown(text)} is not known", version.at)
        return V1_0 if "server_list" in root.members else ""
    if text in (V1_1, V2_0):
        what = "heterogeneous cluster" if text == V1_1 else "A5, with a `rank_list`"
        message = f"version {text} ({what}) is not supported, and so not checked"
        fields.findings.add("RT011", message, version.at)
    elif not isinstance(version, Scalar) or not isinstance(version.value, str):
        fields.findings.add("RT013", f"`version` is {text}, not a string", version.at)
    return text


def _server_list(root: Object, table: TableFile, fields: Fields) -> None:
    servers = fields.array(root, "server_list", required=True)
    count = fields.count(root, "server_count")
    if servers is None:
        return
    table.servers_at = servers.at
    if count is not None and count != len(servers.items):
        said = f"`server_count` is {count}, but {len(servers.items)} servers are listed"
        fields.findings.add("RT020", said, root.members["server_count"].at)
    for item in servers.items:
        server = fields.object(item, "a server")
        if server is None:
            continue
        fields.spelling(server, SERVER_KEYS)
        entry = _server(server, fields)
        devices = fields.array(server, "device", required=True)
        for device in devices.items if devices else ():
            made = fields.device(device, ranked=True, super_pod=table.form == V1_2)
            if made is not None:
                entry.devices.append(made)
        table.servers.append(entry)
    if table.form == V1_2 or "super_pod_list" in root.members:
        table.super_pods = _super_pods(root, fields, required=table.form == V1_2)


def _server(server: Object, fields: Fields) -> ServerEntry:
    entry = ServerEntry(server.at, extra=fields.extra(server, {"server_id", "pod_name"}))
    entry.server_id, entry.server_id_at = fields.text(server, "server_id", required=True)
    fields.addresses(server)
    return entry


def _super_pods(root: Object, fields: Fields, *, required: bool) -> List[SuperPodEntry]:
    pods = []
    listed = fields.array(root, "super_pod_list", required=required)
    for item in listed.items if listed else ():
        pod = fields.object(item, "a super pod")
        if pod is None:
            continue
        name, _ = fields.text(pod, "super_pod_id", required=True)
        entry = SuperPodEntry(pod.at, name or "")
        servers = fields.array(pod, "server_list", required=True)
        for server in servers.items if servers else ():
            named = fields.object(server, "a server of a super pod")
            server_id, at = (
                fields.text(named, "server_id", required=True) if named else (None, server.at)
            )
            if server_id is not None:
                entry.servers.append((server_id, at))
        pods.append(entry)
    return pods


def _group_list(root: Object, table: TableFile, fields: Fields) -> None:
    groups = fields.array(root, "group_list", required=True)
    if groups is None:
        return
    table.servers_at = groups.at
    _fits(root, "group_count", len(groups.items), fields)
    by_server: Dict[str, ServerEntry] = {}
    for item in groups.items:
        group = fields.object(item, "a group")
        if group is None:
            continue
        fields.spelling(group, GROUP_KEYS)
        instances = fields.array(group, "instance_list", required=True)
        if instances is None:
            continue
        devices = 0
        for instance in instances.items:
            entry = _instance(instance, table, fields)
            devices += len(entry.devices) if entry else 0
            if entry is not None and entry.server_id in by_server:
                by_server[entry.server_id].devices.extend(entry.devices)
            elif entry is not None:
                table.servers.append(entry)
                by_server[entry.server_id or f"at {entry.at}"] = entry
        _fits(group, "instance_count", len(instances.items), fields)
        _fits(group, "device_count", devices, fields)
        _fits(group, "device_num", devices, fields)
        _fits(group, "server_num", len(by_server), fields)


def _instance(item: Value, table: TableFile, fields: Fields) -> Optional[ServerEntry]:
    instance = fields.object(item, "an instance")
    if instance is None:
        return None
    fields.spelling(instance, INSTANCE_KEYS)
    known = {"server_id", "pod_name", "rank_id"}
    entry = ServerEntry(instance.at, extra=fields.extra(instance, known))
    entry.server_id, entry.server_id_at = fields.text(instance, "server_id", required=True)
    pod, at = fields.text(instance, "pod_name", required=table.form == CLOUD)
    if pod is not None:
        table.pods.append((pod, entry.server_id or ""))
        table.pods_at = table.pods_at or at
    fields.addresses(instance)
    devices = fields.array(instance, "devices", required=True)
    for device in devices.items if devices else ():
        made = fields.device(device, ranked=False, super_pod=False)
        if made is not None:
            entry.devices.append(made)
    if table.form == LAB and entry.devices:
        first = entry.devices[0]
        first.rank_id, first.rank_id_at = fields.number(instance, "rank_id", "RT050", True)
        for other in entry.devices[1:]:
            message = "this device has no `rank_id`: an instance states that of one device"
            fields.findings.add("RT012", message, other.at)
    return entry


def _fits(holder: Object, key: str, count: int, fields: Fields) -> None:
    said = fields.count(holder, key)
    if said is not None and said != count:
        message = f"`{key}` is {said}, but {count} are listed"
        fields.findings.add("RT070", message, holder.members[key].at)
