"""The rank table of a cluster, from what its hosts report and its inventory declares."""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Sequence

from orchestrator.errors import PlanError
from orchestrator.inventory import Host
from orchestrator.planning.addresses import same_ip
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.ranktable import RankTable, host_table, merge
from orchestrator.problems import Problems, shown

_ASKED = "see what `hccn_tool -i N -ip -g` says there, or declare `device_ips` in the inventory"
_NOT_ASKED = (
    "declare `device_ips` in the inventory, or ask the hosts: `glm2-orch facts --out FILE` and "
    "then --facts FILE"
)


def cluster_table(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], *, need_ips: bool = False
) -> RankTable:
    """One table of all ``hosts`` from the device IPs that they report or the inventory declares.

    A single host may have unknown IPs, unless ``need_ips``. Raises PlanError for an IP that is
    not known or contradicts the inventory, RankTableError for conflicts between hosts.
    """
    problems = Problems()
    needed = need_ips or len(hosts) > 1
    ips = [_device_ips(host, facts.get(host.name), needed, problems) for host in hosts]
    problems.raise_any(PlanError, "the device IPs of this cluster")
    return merge(
        [host_table(host.server_id, its, origin=host.name) for host, its in zip(hosts, ips)]
    )


def _device_ips(
    host: Host, facts: Optional[HostFacts], needed: bool, problems: Problems
) -> Mapping[int, Optional[str]]:
    """IP of each device: what the inventory declares and the host reports must not differ."""
    declared = dict(zip(host.devices, host.device_ips))
    ips: Dict[int, Optional[str]] = {}
    unknown = []
    for device in host.devices:
        live = facts.device_ips.get(device) if facts else None
        said = declared.get(device)
        if said is not None and live is not None and not same_ip(said, live):
            problems.add(
                f"{host.name}: device {device} has IP {shown(live)}, but the inventory declares "
                f"{shown(said)}",
                None,
                "correct `device_ips` in the inventory, or the address of the NIC",
            )
        ips[device] = said or live
        if ips[device] is None:
            unknown.append(device)
    if unknown and needed:
        why = facts.device_ip_errors.get(unknown[0]) if facts else None
        problems.add(
            f"{host.name}: the IP of device {', '.join(map(str, unknown))} is not known"
            + (f" ({shown(why, 200)})" if why else ""),
            None,
            _ASKED if facts else _NOT_ASKED,
        )
    return ips
