"""What the outputs of different device tools have in common."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_PREFIX = re.compile(r"\[(?:device|devid) \d+\]")
_NOT_SET = re.compile(r"Get \w+ failed, because no \w+ was preset there!")


class Misread(ValueError):
    """A text is not what its parser knows; ``str(error)`` says why."""


@dataclass(frozen=True)
class NotSet:
    """The tool says that nothing is configured."""


def lines(text: str) -> List[str]:
    """Lines that are not empty, without margins and without ``[device N]`` or ``[devid N]``."""
    stripped = (_PREFIX.sub("", line, count=1).strip() for line in text.splitlines())
    return [line for line in stripped if line]


def only_line(text: str) -> str:
    """The one line of a text."""
    found = lines(text)
    if len(found) != 1:
        raise Misread("the output is empty" if not found else f"{len(found)} lines instead of one")
    return found[0]


def says_not_set(line: str) -> bool:
    """``Get gateway failed, because no gateway was preset there!`` and the like."""
    return _NOT_SET.fullmatch(line) is not None


def pairs(text: str) -> List[Tuple[str, str]]:
    """Lines ``key : value``."""
    found = []
    for line in lines(text):
        key, colon, value = line.partition(":")
        if not colon or not key.strip():
            raise Misread(f"the line {line[:60]!r} is no `key : value`")
        found.append((key.strip(), value.strip()))
    return found


def address(text: str) -> Optional[Address]:
    """An address that a NIC or router can have; None for ``0.0.0.0`` and the like."""
    try:
        found = ipaddress.ip_address(text.strip())
    except ValueError as error:
        raise Misread(f"{text.strip()[:60]!r} is no address") from error
    return None if found.is_unspecified else found


def number(text: str) -> int:
    """A number of at most 18 digits."""
    if re.fullmatch(r"[0-9]{1,18}", text.strip()) is None:
        raise Misread(f"{text.strip()[:60]!r} is no number")
    return int(text)
