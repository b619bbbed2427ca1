"""Fields of a rank table's JSON objects: which there are, and typed access to them."""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass
from typing import FrozenSet, Optional, Set, Tuple

from orchestrator.planning.addresses import parse_ip
from orchestrator.planning.json_positions import Array, Object, Scalar, Value
from orchestrator.planning.ranktable_rules import Findings
from orchestrator.problems import shown

_NUMBER = re.compile(r"[0-9]{1,9}")
_PORTS = ("host_port", "device_port", "backup_device_port")
_IPS = ("host_ip", "backup_device_ip")


def _keys(words: str) -> FrozenSet[str]:
    return frozenset(words.split())


TOP_KEYS = _keys(
    "version server_count server_list status group_count group_list super_pod_list "
    "deploy_mode board_id chip_info para_plane_nic_location para_plane_nic_name "
    "para_plane_nic_num"
)
SERVER_KEYS = _keys(
    "server_id device host_nic_ip pod_ip container_ip server_ip host_ip host_port "
    "hardware_type pod_name"
)
DEVICE_KEYS = _keys(
    "device_id device_ip rank_id super_device_id device_port backup_device_ip "
    "backup_device_port host_port host_ip"
)
GROUP_KEYS = _keys("group_name device_count instance_count instance_list device_num server_num")
INSTANCE_KEYS = _keys(
    "pod_name server_id devices rank_id host_ip container_ip server_ip pod_ip hardware_type"
)


@dataclass
class DeviceEntry:
    """One device as written. None: not given, or not usable (then it was reported)."""

    at: int
    device_id: Optional[int] = None
    device_id_at: int = 0
    device_ip: Optional[str] = None
    device_ip_at: int = 0
    rank_id: Optional[int] = None
    rank_id_at: int = 0
    super_device_id: Optional[str] = None
    super_device_id_at: int = 0
    extra: Tuple[Tuple[str, str], ...] = ()


class Fields:
    """Typed access to JSON objects; breaches go to ``findings``."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def status(self, root: Object) -> None:
        status, at = self.text(root, "status", required=False)
        if "status" not in root.members:
            self.findings.add("RT014", "there is no `status`", root.at)
        elif status is not None and status != "completed":
            self.findings.add("RT014", f"`status` is {shown(status)}", at)

    def object(self, value: Value, what: str) -> Optional[Object]:
        if isinstance(value, Object):
            return value
        self.findings.add("RT013", f"{what} must be an object, `{{…}}`", value.at, "write `{…}`")
        return None

    def array(self, holder: Object, key: str, *, required: bool) -> Optional[Array]:
        value = holder.members.get(key)
        if value is None:
            if required:
                self.findings.add("RT012", f"`{key}` is missing", holder.at)
            return None
        if isinstance(value, Array):
            return value
        self.findings.add("RT013", f"`{key}` must be a list, `[…]`", value.at, "write `[…]`")
        return None

    def text(self, holder: Object, key: str, *, required: bool) -> Tuple[Optional[str], int]:
        """A scalar as text, and its offset; a number is reported and taken all the same."""
        value = holder.members.get(key)
        if value is None:
            if required:
                self.findings.add("RT012", f"`{key}` is missing", holder.at)
            return None, holder.at
        if not isinstance(value, Scalar):
            self.findings.add("RT013", f"`{key}` must be a string", value.at)
            return None, value.at
        if not isinstance(value.value, str):
            said = json.dumps(value.value)
            self.findings.add("RT013", f"`{key}` is {said[:40]}, not a string", value.at)
            return (None if value.value is None else said), value.at
        return value.value, value.at

    def number(
        self, holder: Object, key: str, code: str, required: bool
    ) -> Tuple[Optional[int], int]:
        text, at = self.text(holder, key, required=required)
        if text is None:
            return None, at
        if _NUMBER.fullmatch(text) is None:
            self.findings.add(code, f"`{key}` is {shown(text)}, not a number from 0 up", at)
            return None, at
        return int(text), at

    def count(self, holder: Object, key: str) -> Optional[int]:
        return self.number(holder, key, "RT013", False)[0]

    def device(self, item: Value, *, ranked: bool, super_pod: bool) -> Optional[DeviceEntry]:
        device = self.object(item, "a device")
        if device is None:
            return None
        self.spelling(device, DEVICE_KEYS)
        entry = DeviceEntry(device.at)
        entry.device_id, entry.device_id_at = self.number(device, "device_id", "RT040", True)
        entry.device_ip, entry.device_ip_at = self.text(device, "device_ip", required=False)
        entry.rank_id, entry.rank_id_at = self.number(device, "rank_id", "RT050", ranked)
        known = {"device_id", "device_ip", "rank_id"}
        if len(device.members) > 3:
            entry.extra = self.extra(device, {*known, "super_device_id"})
            self.addresses(device)
            text, at = self.text(device, "super_device_id", required=False)
            entry.super_device_id, entry.super_device_id_at = text, at
        if super_pod and "super_device_id" not in device.members:
            self.findings.add("RT080", "`super_device_id` is missing", device.at)
        return entry

    def addresses(self, holder: Object) -> None:
        """Check the optional ports and addresses of a server or device."""
        for key in _PORTS:
            if key in holder.members:
                port, at = self.number(holder, key, "RT060", False)
                if port is not None and not 1 <= port <= 65_535:
                    self.findings.add("RT060", f"`{key}` is {port}", at)
        for key in _IPS:
            if key in holder.members:
                text, at = self.text(holder, key, required=False)
                if text is not None and parse_ip(text) is None:
                    self.findings.add("RT061", f"`{key}` {shown(text)} is not an IP address", at)

    def extra(self, holder: Object, known: Set[str]) -> Tuple[Tuple[str, str], ...]:
        """Other scalars of an object, kept when a table is converted or merged."""
        return tuple(
            (key, value.value)
            for key, value in holder.members.items()
            if key not in known and isinstance(value, Scalar) and isinstance(value.value, str)
        )

    def spelling(self, holder: Object, known: FrozenSet[str]) -> None:
        for key, at in holder.keys.items():
            if key in known:
                continue
            close = _meant(key, known)
            if close is not None:
                message = f"key {shown(key)} is not known; did you mean `{close}`?"
                self.findings.add("RT015", message, at)


@functools.lru_cache(maxsize=256)  # a misspelt key tends to be so in thousands of devices
def _meant(key: str, known: FrozenSet[str]) -> Optional[str]:
    close = difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.8)
    return close[0] if close else None
