"""Fenced ``console`` blocks of a page: lines after ``$`` are commands, the others what they print.

In an expected line ``…`` stands for anything; between expected lines others may stand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import List, Optional

_BLOCK = re.compile(r"^(?P<indent> *)```console\n(?P<body>.*?)^ *```$", re.M | re.S)


@dataclass
class Typed:
    """One command of a page and the lines that it is said to print."""

    command: str
    expected: List[str] = field(default_factory=list)


def typed(page: str) -> List[Typed]:
    """The commands of all ``console`` blocks, in their order."""
    found: List[Typed] = []
    for block in _BLOCK.finditer(page):
        for line in block["body"].splitlines():
            line = line[len(block["indent"]) :]
            if line.startswith("$ "):
                found.append(Typed(line[2:]))
            else:
                found[-1].expected.append(line)
    return found


def unseen(expected: List[str], printed: str) -> Optional[str]:
    """The first expected line that is not printed behind those before it; None: all are there."""
    lines = iter(printed.splitlines())
    for line in expected:
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))), re.S)
        if not any(pattern.fullmatch(one.rstrip()) for one in lines):
            return line
    return None
