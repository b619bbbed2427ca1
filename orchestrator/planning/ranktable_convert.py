"""Rank tables from one form to another, and files merged into one table."""

from __future__ import annotations

import json
from typing import Dict, List, Optional, Sequence, Tuple

from orchestrator.errors import RankTableError
from orchestrator.planning.ranktable import (
    Device,
    RankTable,
    Server,
    merge,
    number,
    rank_order,
)
from orchestrator.planning.ranktable_fields import DeviceEntry
from orchestrator.planning.ranktable_forms import CHECKED, CLOUD, V1_0, V1_2, ServerEntry
from orchestrator.planning.ranktable_lint import CheckedTable, check_table, pod_number
from orchestrator.problems import Problems

BY_SERVER_ID, BY_POD = "server_id", "pod"
ORDERS = (BY_SERVER_ID, BY_POD)

LAB_FORM = "lab"
FORMS = (V1_0, V1_2, CLOUD, LAB_FORM)
"""What ``convert`` writes."""


def usable(checked: CheckedTable, order: Optional[str] = None) -> RankTable:
    """The rank table in a file that was checked, ranks included.

    ``order`` None keeps the ranks that the file states, and numbers those of a group_list by the
    dictionary order of server_id; ``server_id`` numbers all anew in that order; ``pod`` in the
    order of the pods' numbers, as ModelArts' own launcher does. Raises RankTableError with every
    error that the check found, or when the form cannot be used.
    """
    problems = Problems()
    for finding in checked.findings:
        if finding.is_error:
            problems.add(f"{finding.rule.code} {finding.message}", finding.location, finding.remedy)
    problems.raise_any(RankTableError, checked.name)
    if checked.form not in CHECKED:
        raise RankTableError(
            f"{checked.name} has version {checked.form}, which cannot be used here",
            hint="make a table of version 1.0 with `glm2-orch ranktable generate`",
        )
    servers = [_server(entry, checked.name) for entry in checked.table.servers]
    stated = all(device.rank_id >= 0 for server in servers for device in server.devices)
    if order is None and stated:
        return RankTable(tuple(sorted(servers, key=lambda server: server.devices[0].rank_id)))
    anew = [_by_device(server) for server in servers]
    if order == BY_POD:
        return number(_by_pod(anew, checked))
    return number(rank_order(anew, lambda server: server.server_id))


def proven(table: RankTable, name: str) -> CheckedTable:
    """The check of a table that was made here, as the file ``name`` would get it; what is left
    in its findings are warnings and notes. Raises RankTableError with every error."""
    checked = check_table(table.to_json().encode(), name)
    problems = Problems()
    for finding in checked.findings:
        if finding.is_error:  # without its place: that file is not written
            problems.add(f"{finding.rule.code} {finding.message}", None, finding.remedy)
    problems.raise_any(RankTableError, f"the new table {name}")
    return checked


def merge_files(inputs: Sequence[CheckedTable]) -> RankTable:
    """One table of all servers in ``inputs``; their order does not matter.

    Raises RankTableError with every error in them and every conflict between them, and when one
    of them is the output of an earlier merge of servers that the others give as well.
    """
    problems = Problems()
    tables: List[RankTable] = []
    for checked in inputs:
        try:
            if checked.form == V1_2:
                raise RankTableError(
                    f"{checked.name} has version 1.2, whose super pods a merge would lose",
                    hint="convert it first: `glm2-orch ranktable convert --to 1.0`",
                )
            tables.append(usable(checked))
        except RankTableError as error:
            problems.add(error.message, error.location, error.hint)
    for name, other in _earlier_outputs(tables):
        problems.add(
            f"{name} is the output of an earlier merge: {other} gives one of its servers as well",
            None,
            "leave it out, or write the output where the pattern of the inputs does not match",
        )
    problems.raise_any(RankTableError, "this merge")
    return merge(tables)


def to_1_2(checked: CheckedTable) -> str:
    """The table as version 1.2. Raises RankTableError unless every device has a
    ``super_device_id`` and the super pods are listed: neither can be made up."""
    table = usable(checked)
    problems = Problems()
    pods = checked.table.super_pods
    if not pods:
        problems.add(
            f"{checked.name} lists no super pods", None, "add `super_pod_list` to the file"
        )
    super_ids: Dict[Tuple[str, int], str] = {}
    for server in checked.table.servers:
        for device in server.devices:
            if device.super_device_id is None:
                problems.add(
                    f"device {device.device_id} of {server.name} in {checked.name} has no "
                    "super_device_id",
                    None,
                    "add the ids of the devices in their super pods to the file",
                )
            else:
                super_ids[server.server_id or "", device.device_id or 0] = device.super_device_id
    problems.raise_any(RankTableError, checked.name)
    content = {
        "version": V1_2,
        "server_count": str(len(table.servers)),
        "server_list": [
            {
                "server_id": server.server_id,
                "device": [
                    {
                        **_device_fields(device),
                        "super_device_id": super_ids[server.server_id, device.device_id],
                        "rank_id": str(device.rank_id),
                        **dict(device.extra),
                    }
                    for device in server.devices
                ],
                **dict(server.extra),
            }
            for server in table.servers
        ],
        "super_pod_list": [
            {
                "super_pod_id": pod.super_pod_id,
                "server_list": [{"server_id": server_id} for server_id, _ in pod.servers],
            }
            for pod in pods
        ],
        "status": "completed",
    }
    return _text(content)


def to_group_list(table: RankTable) -> str:
    """The table in ModelArts' and Kubernetes' form. Pods are named so that their numbers give the
    order of ranks. Raises RankTableError when ranks do not follow servers and devices, which
    this form cannot state."""
    for server in table.servers:
        ids = [device.device_id for device in server.devices]
        if ids != sorted(ids):
            raise RankTableError(
                f"ranks of server {server.server_id} do not follow its devices, which a "
                "group_list cannot say",
                hint="convert to the lab form, which states each rank: --to lab",
            )
    instances = [
        {
            "pod_name": f"server-{index}",
            "server_id": server.server_id,
            "devices": [_device_fields(device) for device in server.devices],
            **dict(server.extra),
        }
        for index, server in enumerate(table.servers)
    ]
    group = {
        "group_name": "hccl_world_group",
        "device_count": str(table.world_size),
        "instance_count": str(len(instances)),
        "instance_list": instances,
    }
    return _text({"status": "completed", "group_count": "1", "group_list": [group]})


def to_lab(table: RankTable) -> str:
    """The table in the lab form of a group_list: one instance a rank. What is known of the
    hardware alone (``board_id``) is left out."""
    instances = [
        {
            "devices": [_device_fields(device)],
            "rank_id": str(device.rank_id),
            "server_id": server.server_id,
        }
        for server in table.servers
        for device in server.devices
    ]
    group = {
        "group_name": "",
        "device_num": str(table.world_size),
        "server_num": str(len(table.servers)),
        "instance_count": str(len(instances)),
        "instance_list": instances,
    }
    return _text(
        {"deploy_mode": "lab", "group_count": "1", "group_list": [group], "status": "completed"}
    )


def convert(checked: CheckedTable, form: str, order: Optional[str] = None) -> str:
    """Text of the table in another ``form`` (see ``FORMS``). Raises RankTableError."""
    if form == V1_2:
        return to_1_2(checked)
    table = usable(checked, order)
    if checked.form == V1_2:  # what a server of a super pod may have, a 910 server may not
        proven(table, checked.name)
    if form == V1_0:
        return table.to_json()
    return to_lab(table) if form == LAB_FORM else to_group_list(table)


def _server(entry: ServerEntry, origin: str) -> Server:
    devices = sorted(map(_device, entry.devices), key=lambda device: device.rank_id)
    return Server(entry.server_id or "", tuple(devices), entry.extra, origin)


def _device(entry: DeviceEntry) -> Device:
    """An entry without errors as a device; its rank is -1 where the form states none."""
    rank = -1 if entry.rank_id is None else entry.rank_id
    return Device(entry.device_id or 0, entry.device_ip, rank, entry.extra)


def _by_device(server: Server) -> Server:
    devices = sorted(server.devices, key=lambda device: device.device_id)
    return Server(server.server_id, tuple(devices), server.extra, server.origin)


def _by_pod(servers: Sequence[Server], checked: CheckedTable) -> List[Server]:
    numbers: Dict[str, int] = {}
    for pod, server_id in checked.table.pods:
        found = pod_number(pod)
        if found is not None:
            numbers.setdefault(server_id, found)
    for server in servers:
        if server.server_id not in numbers:
            raise RankTableError(
                f"the pod of server {server.server_id} in {checked.name} has no number at its end",
                hint="use --order server_id",
            )
    return sorted(servers, key=lambda server: numbers[server.server_id])


def _earlier_outputs(tables: Sequence[RankTable]) -> List[Tuple[str, str]]:
    """Inputs of several servers, one of which another input gives too; with that other's name."""
    owners: Dict[str, List[int]] = {}
    for index, table in enumerate(tables):
        for server in table.servers:
            owners.setdefault(server.server_id, []).append(index)
    found = []
    for index, table in enumerate(tables):
        if len(table.servers) < 2:
            continue
        others = {i for server in table.servers for i in owners[server.server_id]} - {index}
        if others:
            found.append((table.servers[0].origin, tables[min(others)].servers[0].origin))
    return found


def _device_fields(device: Device) -> Dict[str, str]:
    fields = {"device_id": str(device.device_id)}
    if device.device_ip is not None:
        fields["device_ip"] = device.device_ip
    return fields


def _text(content: object) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False) + "\n"
