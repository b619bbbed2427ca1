"""Drift: a rank table against what the inventory declares and the hosts report now."""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Sequence

from orchestrator.inventory import Host
from orchestrator.planning.addresses import same_ip
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.ranktable_forms import TableFile
from orchestrator.planning.ranktable_rules import Findings
from orchestrator.problems import shown


def check_drift(
    table: TableFile,
    hosts: Sequence[Host],
    facts: Mapping[str, HostFacts],
    unasked: Mapping[str, str],
    findings: Findings,
) -> None:
    """Report where ``table`` differs from the inventory's ``hosts`` and from their ``facts``;
    ``unasked`` says why a host could not be asked, by name."""
    by_server: Dict[Optional[str], Host] = {host.server_id: host for host in hosts}
    for server in table.servers:
        host = by_server.pop(server.server_id, None)
        if host is None:
            findings.add(
                "RT091",
                f"server {server.name} is not in the inventory",
                server.server_id_at,
            )
            continue
        if host.name in unasked:
            message = f"{host.name} could not be asked: {unasked[host.name]}"
            findings.add("RT092", message, server.server_id_at, "mend that, then check again")
        live = facts[host.name].device_ips if host.name in facts else {}
        for device in server.devices:
            if device.device_id is None:
                continue
            if device.device_id not in host.devices:
                message = f"the inventory gives {host.name} no device {device.device_id}"
                findings.add("RT091", message, device.device_id_at)
            if host.name in unasked:
                continue
            reported = live.get(device.device_id)
            if reported is None:
                message = f"{host.name} did not tell the IP of device {device.device_id}"
                findings.add("RT092", message, device.at)
            elif device.device_ip is not None and not _lists(device.device_ip, reported):
                findings.add(
                    "RT090",
                    f"{host.name} reports {shown(reported)} for device {device.device_id}",
                    device.device_ip_at,
                )
    for host in by_server.values():
        findings.add("RT091", f"{host.name} of the inventory is not in the table", table.servers_at)


def _lists(device_ip: str, reported: str) -> bool:
    """Whether ``device_ip``, an address or a comma list, names the one that is reported."""
    return any(same_ip(text, reported) for text in device_ip.split(","))
