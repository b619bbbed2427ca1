"""Outputs of ``hccn_tool -i N … -g``: the NIC of one device. Misread is raised for any other."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Union

from orchestrator.preflight.outputs import (
    Address,
    Misread,
    NotSet,
    address,
    lines,
    number,
    only_line,
    pairs,
    says_not_set,
)

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_GATEWAY = re.compile(r"default gateway:\s*([^,\s]*)\s*,\s*Iface:\s*(\S*)")
_TLS = re.compile(r"dev_id:\d+, tls switch\[([01])\]\(0:disable, 1:enable\).*")
_PING = re.compile(r"device \d+ PING \S+")
_REPLY = re.compile(r"recv seq=\d+,\s*time=[\d.]+ms|recv time out seq=\d+.*")
_SUMMARY = re.compile(
    r"([0-9]+) packets transmitted, ([0-9]+) received, ([0-9]+(?:\.[0-9]+)?)% packet loss"
)


@dataclass(frozen=True)
class NicAddress:
    """Address and subnet of a NIC."""

    ip: Address
    network: Network


@dataclass(frozen=True)
class Link:
    up: bool


@dataclass(frozen=True)
class NetHealth:
    """``Success``, ``Init``, ``Fault`` …, as the tool says it."""

    status: str


@dataclass(frozen=True)
class Gateway:
    ip: Address
    interface: str


@dataclass(frozen=True)
class NetDetect:
    """The address that a NIC pings to see whether its network works."""

    ip: Address


@dataclass(frozen=True)
class TlsSwitch:
    on: bool


@dataclass(frozen=True)
class Ping:
    sent: int
    received: int

    @property
    def lost(self) -> int:
        return self.sent - self.received


def ip(text: str) -> Union[NicAddress, NotSet]:
    """``ipaddr:A`` and ``netmask:M``."""
    found = lines(text)
    if len(found) == 1 and says_not_set(found[0]):
        return NotSet()
    values = dict(pairs(text))
    if set(values) != {"ipaddr", "netmask"}:
        raise Misread("not `ipaddr:` and `netmask:`")
    nic = address(values["ipaddr"])
    if nic is None:
        return NotSet()
    try:
        network = ipaddress.ip_network(f"{nic}/{values['netmask']}", strict=False)
    except ValueError as error:
        raise Misread(f"{values['netmask'][:60]!r} is no netmask") from error
    return NicAddress(nic, network)


def link(text: str) -> Link:
    """``link status: UP`` or ``DOWN``."""
    state = _value(only_line(text), "link status")
    if state not in ("UP", "DOWN"):
        raise Misread(f"link status {state[:60]!r} is neither UP nor DOWN")
    return Link(state == "UP")


def net_health(text: str) -> NetHealth:
    """``net health status: Success``, ``Init``, ``Fault`` or another word."""
    status = _value(only_line(text), "net health status")
    if re.fullmatch(r"[A-Za-z][A-Za-z ]{0,40}", status) is None:
        raise Misread(f"net health status {status[:60]!r} is no word")
    return NetHealth(status)


def gateway(text: str) -> Union[Gateway, NotSet]:
    """``default gateway:A, Iface:ethN``."""
    line = only_line(text)
    if says_not_set(line):
        return NotSet()
    match = _GATEWAY.fullmatch(line)
    if match is None:
        raise Misread("not `default gateway:A, Iface:ethN`")
    router = address(match.group(1)) if match.group(1) else None
    return NotSet() if router is None else Gateway(router, match.group(2))


def netdetect(text: str) -> Union[NetDetect, NotSet]:
    """``netdetect address: A``."""
    line = only_line(text)
    if says_not_set(line):
        return NotSet()
    value = _value(line, "netdetect address")
    target = address(value) if value else None
    return NotSet() if target is None else NetDetect(target)


def tls(text: str) -> TlsSwitch:
    """``dev_id:0, tls switch[0](0:disable, 1:enable), …``; lines ``dev_id:0, …`` on certificates
    may follow."""
    switches = []
    for line in lines(text):
        match = _TLS.fullmatch(line)
        if match:
            switches.append(match.group(1) == "1")
        elif not line.startswith("dev_id:"):
            raise Misread(f"{line[:60]!r} is not about TLS")
    if len(switches) != 1:
        raise Misread("not one line with `tls switch[0]` or `tls switch[1]`")
    return TlsSwitch(switches[0])


def ping(text: str) -> Ping:
    """``device N PING A``, a line a packet, and the sum of packets sent and received."""
    head, *replies = lines(text) or [""]
    if _PING.fullmatch(head) is None or not replies:
        raise Misread("not `device N PING A` and replies")
    summary = _SUMMARY.fullmatch(replies.pop())
    if summary is None:
        raise Misread("no line that sums up the packets")
    for reply in replies:
        if _REPLY.fullmatch(reply) is None:
            raise Misread(f"{reply[:60]!r} is no reply")
    sent, received = number(summary.group(1)), number(summary.group(2))
    if not sent or received > sent:
        raise Misread(f"{received} of {sent} packets cannot be")
    return Ping(sent, received)


def _value(line: str, key: str) -> str:
    name, colon, value = line.partition(":")
    if not colon or name.strip() != key:
        raise Misread(f"not `{key}: …`")
    return value.strip()
