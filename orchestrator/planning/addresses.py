"""IP addresses written as text."""

from __future__ import annotations

import functools
import ipaddress
from typing import Optional, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


@functools.lru_cache(maxsize=65_536)  # a table's addresses are looked at several times
def parse_ip(text: str) -> Optional[Address]:
    """The IPv4 or IPv6 address that ``text`` is, or None.

    >>> parse_ip("192.1.*.6") is None
    True
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def same_ip(a: str, b: str) -> bool:
    """Whether two texts name one address, in whatever spelling."""
    parsed = parse_ip(a)
    return a == b or (parsed is not None and parsed == parse_ip(b))
