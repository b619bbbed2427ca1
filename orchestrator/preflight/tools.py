"""Outputs of the device tools -> facts, whichever tool it was.

A text that is not understood to its last line is a ``NotUnderstood``, which no check takes for
good. The formats are those of real outputs (npu-smi 23 to 26); the tools themselves were not run
here: *unverified* on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Sequence, Tuple, Union

from orchestrator.preflight import hccn_tool, npu_smi
from orchestrator.preflight.outputs import Misread, NotSet

Fact = Union[
    npu_smi.NpuTable,
    npu_smi.DriverDown,
    npu_smi.NpuHealth,
    npu_smi.EccCounts,
    hccn_tool.NicAddress,
    hccn_tool.Link,
    hccn_tool.NetHealth,
    hccn_tool.Gateway,
    hccn_tool.NetDetect,
    hccn_tool.TlsSwitch,
    hccn_tool.Ping,
    NotSet,
]


@dataclass(frozen=True)
class NotUnderstood:
    """What a tool printed says nothing that can be relied on."""

    command: str
    text: str
    why: str


@dataclass(frozen=True)
class Unanswered:
    """A tool printed nothing because it was not found, could not be run or did not end in time."""

    command: str
    why: str

    @property
    def missing(self) -> bool:
        return self.why == "not found"


_PARSERS: Mapping[Tuple[str, ...], Callable[[str], Fact]] = {
    ("npu-smi", "info"): npu_smi.table,
    ("npu-smi", "info", "-t", "health"): npu_smi.health,
    ("npu-smi", "info", "-t", "ecc"): npu_smi.ecc,
    ("hccn_tool", "-ip", "-g"): hccn_tool.ip,
    ("hccn_tool", "-link", "-g"): hccn_tool.link,
    ("hccn_tool", "-net_health", "-g"): hccn_tool.net_health,
    ("hccn_tool", "-gateway", "-g"): hccn_tool.gateway,
    ("hccn_tool", "-netdetect", "-g"): hccn_tool.netdetect,
    ("hccn_tool", "-tls", "-g"): hccn_tool.tls,
    ("hccn_tool", "-ping", "-g", "address"): hccn_tool.ping,
}

_MAY_FAIL = (NotSet, hccn_tool.Ping, npu_smi.DriverDown)
"""Facts that the tools report with an exit status other than 0."""


def parse(argv: Sequence[str], text: str, status: int = 0) -> Union[Fact, NotUnderstood]:
    """What ``argv`` said by printing ``text`` and ending with ``status``. Never raises.

    >>> parse(["hccn_tool", "-i", "0", "-link", "-g"], "link status: UP")
    Link(up=True)
    """
    command = " ".join(argv)
    parser = _PARSERS.get(_topic(argv))
    if parser is None:
        return NotUnderstood(command, text, "no parser for this command")
    try:
        fact = parser(text)
    except Misread as error:
        return NotUnderstood(command, text, str(error))
    if status != 0 and not isinstance(fact, _MAY_FAIL):
        return NotUnderstood(command, text, f"the tool ended with status {status}")
    return fact


def device_of(argv: Sequence[str]) -> Dict[str, int]:
    """``{"device": N}`` when a command names one with ``-i N``, else nothing."""
    words = list(argv)
    if "-i" in words[:-1] and words[words.index("-i") + 1].isdecimal():
        return {"device": int(words[words.index("-i") + 1])}
    return {}


def _topic(argv: Sequence[str]) -> Tuple[str, ...]:
    """The command without its device and without the address that it pings."""
    words = list(argv)
    if "-i" in words:
        at = words.index("-i")
        del words[at : at + 2]
    return tuple(words[:-1] if "-ping" in words else words)
