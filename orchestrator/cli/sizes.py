"""Sizes as people write them on a command line."""

from __future__ import annotations

import re

from orchestrator.errors import UsageError


def parse_size(text: str) -> int:
    """``5GB`` and ``5G`` (5 x 10^9), ``512MiB`` and ``512Mi`` (512 x 2^20), ``1000``: bytes.

    Raises UsageError for anything else, and for zero.
    """
    match = re.fullmatch(r"(\d{1,15})\s*(?:([KMGT])(i)?B?)?", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"{text!r} is no size", hint="write 5GB, 512MiB, 200M or a number of bytes"
        )
    power = " KMGT".index(match[2]) if match[2] else 0
    unit: int = (1024 if match[3] else 1000) ** power
    return int(match[1]) * unit
