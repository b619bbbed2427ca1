"""The rules for rank tables: stable codes, what HCCL does about a breach, how to mend it.

Sources: HCCL's rank-table parser and user guide (``cluster_info_config``), MindSpore's tutorial on
rank tables, HCCL's fault diagnosis (EI0001, EI0004, EI0014, EI0017). *Unverified* marks what was
not tried on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Tuple

from orchestrator.errors import Location
from orchestrator.inventory import FOURS_OF_910
from orchestrator.planning.json_positions import Reading

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Rule:
    """One rule. ``title`` states it; ``hccl`` says what happens in a job that breaks it."""

    code: str
    severity: str
    title: str
    hccl: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One breach of a rule at one place."""

    rule: Rule
    message: str
    location: Location
    remedy: str
    """What to do here; the rule's own remedy where nothing more special is known."""

    @property
    def is_error(self) -> bool:
        return self.rule.severity == ERROR


_FOURS = " ".join("{" + ",".join(map(str, four)) + "}" for four in FOURS_OF_910)
_REFUSED = "refuses the table: EI0004"
_INCOMPLETE = "refuses the table: EI0017, an item is missing"
_IGNORES = "does not notice"

_ALL: Tuple[Rule, ...] = (
    Rule("RT001", ERROR, "The file is JSON", _REFUSED, "correct the JSON"),
    Rule("RT002", ERROR, "JSON has no comments", _REFUSED, "delete the comment"),
    Rule(
        "RT003",
        ERROR,
        "A table lists every server and device; an ellipsis stands for nothing",
        _REFUSED,
        "write out what the ellipsis stands for",
    ),
    Rule("RT004", ERROR, "Braces and brackets match", _REFUSED, "add or delete the one named"),
    Rule(
        "RT005",
        ERROR,
        "A key is given once",
        "takes one of the values (unverified which)",
        "delete the wrong one",
    ),
    Rule(
        "RT006",
        ERROR,
        "The file's name ends in .json",
        "refuses the path: EI0004",
        "rename the file",
    ),
    Rule(
        "RT007",
        ERROR,
        "The file exists and can be read",
        "refuses the path: EI0004, `is not a valid real path`",
        "correct the path, or copy the file there",
    ),
    Rule(
        "RT010",
        ERROR,
        "The form is known: a `version` of 1.0 or 1.2, or none with `group_list`",
        _REFUSED,
        'add `"version": "1.0"`, or make the table anew with `glm2-orch ranktable generate`',
    ),
    Rule(
        "RT011",
        WARNING,
        "Versions 1.1 (heterogeneous) and 2.0 (A5) are recognised, but not supported",
        "reads it on the hardware that it is for",
        "check it with the tools of that hardware; a 910 server needs version 1.0",
    ),
    Rule("RT012", ERROR, "Every required key is there", _INCOMPLETE, "add the key"),
    Rule(
        "RT013",
        ERROR,
        "Every scalar is a string; lists and objects are where they belong",
        _REFUSED,
        'put the value in quotes, e.g. "0"',
    ),
    Rule(
        "RT014",
        ERROR,
        "`status` is `completed`",
        "reads the file again every second and waits, up to 30 minutes",
        'write "status": "completed" once the table is whole',
    ),
    Rule(
        "RT015",
        WARNING,
        "Keys are spelt as HCCL knows them",
        "ignores a key that it does not know",
        "correct the key",
    ),
    Rule(
        "RT020",
        ERROR,
        "`server_count`, where given, is the number of servers",
        _REFUSED,
        "correct the number",
    ),
    Rule(
        "RT021",
        ERROR,
        "A `server_id` has 1 to 64 characters",
        _REFUSED,
        "use the server's IP address",
    ),
    Rule(
        "RT022",
        ERROR,
        "Each `server_id` is given once",
        _REFUSED,
        "give each server its own server_id, usually its IP address",
    ),
    Rule(
        "RT023",
        WARNING,
        "Ranks follow the dictionary order of `server_id` (10.0.0.10 before 10.0.0.9)",
        f"{_IGNORES}; MindSpore's documentation requires it",
        "make the table with `glm2-orch ranktable merge` or `generate`",
    ),
    Rule(
        "RT024",
        ERROR,
        "All servers have the same number of devices",
        _REFUSED,
        "use the same devices on each server",
    ),
    Rule("RT025", ERROR, "There are servers, and each has devices", _REFUSED, "list them"),
    Rule(
        "RT026",
        WARNING,
        "A `server_id` is no placeholder",
        f"{_IGNORES}: any text will do",
        "write the server's IP address",
    ),
    Rule(
        "RT030",
        ERROR,
        "With more than one server, each device has a `device_ip`",
        _INCOMPLETE,
        "read it on the host with `hccn_tool -i N -ip -g`",
    ),
    Rule(
        "RT031",
        ERROR,
        "A `device_ip` is an IPv4 or IPv6 address",
        _REFUSED,
        "read it on the host with `hccn_tool -i N -ip -g`",
    ),
    Rule(
        "RT032",
        ERROR,
        "Each `device_ip` is used once in the whole table",
        _REFUSED,
        "compare with `hccn_tool -i N -ip -g` on both hosts",
    ),
    Rule(
        "RT033",
        ERROR,
        "All `device_ip` are of one family, IPv4 or IPv6",
        "stops: EI0001 or EI0004",
        "use one family on all NICs",
    ),
    Rule(
        "RT034",
        ERROR,
        "Where `device_ip` is a comma list, all devices list as many",
        _REFUSED,
        "list the same number of addresses for each device",
    ),
    Rule(
        "RT035",
        WARNING,
        "A `device_ip` is an address that a NIC can have",
        "stops when it compares it with the NIC: EI0014",
        "read it on the host with `hccn_tool -i N -ip -g`",
    ),
    Rule(
        "RT036",
        NOTE,
        "By convention devices k and k+4 of a 910A server share a subnet",
        _IGNORES,
        "compare with the netmask and the cabling; nothing to do where they differ on purpose",
    ),
    Rule(
        "RT040",
        ERROR,
        "A `device_id` is the physical id, 0 to 7 on a 910 server",
        _REFUSED,
        "write the id that `npu-smi info` shows",
    ),
    Rule(
        "RT041",
        ERROR,
        "Each `device_id` is given once on its server",
        _REFUSED,
        "correct the ids of this server",
    ),
    Rule(
        "RT042",
        ERROR,
        "Four devices of a 910 server are one of eight sets",
        _REFUSED,
        f"use one of {_FOURS}",
    ),
    Rule(
        "RT043",
        WARNING,
        "Device ids 8 to 15 are those of a server with 16 devices (Atlas 200T A2 Box16)",
        "finds no such device on a 910 server with eight",
        "write the ids that `npu-smi info` shows; on a 910 server 0 to 7",
    ),
    Rule("RT050", ERROR, "A `rank_id` is a number from 0 up", _REFUSED, "number the ranks from 0"),
    Rule("RT051", ERROR, "Each `rank_id` is given once", _REFUSED, "number the ranks 0 to N-1"),
    Rule(
        "RT052", ERROR, "The rank ids are exactly 0 to N-1", _REFUSED, "number the ranks 0 to N-1"
    ),
    Rule(
        "RT053",
        ERROR,
        "The ranks of a server follow one another; servers do not interleave",
        _REFUSED,
        "number one server's devices after another's",
    ),
    Rule(
        "RT054",
        NOTE,
        "Within a server ranks follow the device ids",
        f"{_IGNORES}: RANK_ID and DEVICE_ID of each process must then follow the table",
        "check that the launcher reads the table, or number the ranks in the order of devices",
    ),
    Rule("RT060", ERROR, "A port is a number from 1 to 65535", _REFUSED, "correct the port"),
    Rule(
        "RT061",
        ERROR,
        "`host_ip` and `backup_device_ip` are IP addresses",
        _REFUSED,
        "write the address",
    ),
    Rule(
        "RT070",
        ERROR,
        "The counts of a group_list fit what it lists",
        "refuses the table: EI0004 (unverified)",
        "correct the count",
    ),
    Rule(
        "RT071",
        WARNING,
        "Pods are listed in the order of the number at the end of their names",
        "numbers ranks in the order of the list; ModelArts' launcher sorts first (unverified)",
        "convert it: `glm2-orch ranktable convert --to 1.0`",
    ),
    Rule(
        "RT080",
        ERROR,
        "In version 1.2 each device has a `super_device_id`, unique in its super pod",
        "stops: EI0004, `super_device_id[] is invalid`",
        "write the id that `npu-smi info` shows for the device in its super pod",
    ),
    Rule(
        "RT081",
        ERROR,
        "`super_pod_list` names each server of `server_list` once, and no other",
        _REFUSED,
        "correct the list of the super pod",
    ),
    Rule(
        "RT082",
        ERROR,
        "The servers of a super pod follow one another",
        _REFUSED,
        "list the servers of one super pod together",
    ),
    Rule(
        "RT090",
        ERROR,
        "A `device_ip` is the one that the host reports",
        "stops: EI0014, the address in the table is not that of the NIC",
        "make the table anew with `glm2-orch ranktable generate --inventory FILE`",
    ),
    Rule(
        "RT091",
        WARNING,
        "The table and the inventory name the same servers and devices",
        _IGNORES,
        "make the table anew, or correct the inventory",
    ),
    Rule(
        "RT092",
        WARNING,
        "The host could tell the `device_ip` of each device",
        "is not asked: what the table says could not be compared",
        "run `hccn_tool -i N -ip -g` on the host",
    ),
)

RULES: Dict[str, Rule] = {rule.code: rule for rule in _ALL}
"""All rules by code, in order. A code keeps its meaning for ever."""


class _Raw(NamedTuple):
    code: str
    message: str
    at: int
    remedy: str


class Findings:
    """Collects breaches of rules in one text, in any order."""

    def __init__(self) -> None:
        self._raw: List[_Raw] = []

    def add(self, code: str, message: str, at: int, remedy: str = "") -> None:
        """Note a breach of rule ``code`` at offset ``at``, with a ``remedy`` of its own if any."""
        self._raw.append(_Raw(code, message, at, remedy))

    def has(self, *codes: str) -> bool:
        """Whether one of these rules was breached so far."""
        return any(raw.code in codes for raw in self._raw)

    def placed(self, name: str, reading: Reading) -> Tuple[Finding, ...]:
        """All findings with their places in the file ``name``, in the order of the text."""
        return tuple(
            Finding(
                RULES[raw.code],
                raw.message,
                Location(name, *reading.place(raw.at)),
                raw.remedy or RULES[raw.code].remedy,
            )
            for raw in sorted(self._raw, key=lambda raw: (raw.at, raw.code))
        )
