"""What a job says about its recovery: ``recovery:`` of the job section, ``--recover KEY=VALUE``."""

from __future__ import annotations

import math
import re
from typing import Mapping, Optional, Union

from orchestrator.problems import nearest, shown

Value = Union[int, float, bool]

KEYS: Mapping[str, str] = {
    "max_restarts": "how often it may be started again: a number from 0 to 100 (0: never)",
    "min_hosts": "the fewest hosts that it may run on, where it may run on fewer: a number",
    "spares": "whether a spare may take the place of a bad host: true or false",
    "quarantine_for": "how long a bad host is kept out: a time such as 24h",
}
_TIME = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class RecoveryOptionError(ValueError):
    """A key or value that is not one. ``hint``: the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check(key: str, value: object) -> Value:
    """The value of ``key``, checked. Raises RecoveryOptionError."""
    if key not in KEYS:
        hint = nearest(key, tuple(KEYS)) or f"known are {', '.join(KEYS)}"
        raise RecoveryOptionError(f"unknown key {shown(key)} in `recovery`", hint)
    if key == "spares":
        if isinstance(value, bool):
            return value
    elif key == "quarantine_for":
        seconds = _seconds(value)
        if seconds is not None:
            return seconds
    elif isinstance(value, int) and not isinstance(value, bool):
        least, most = (0, 100) if key == "max_restarts" else (1, 1_000_000)
        if least <= value <= most:
            return value
    raise RecoveryOptionError(f"`{key}` is {shown(str(value))}", KEYS[key])


def _seconds(value: object) -> Optional[float]:
    if isinstance(value, str):
        found = _TIME.fullmatch(value.strip())
        value = float(found[1]) * _UNITS[found[2]] if found else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 1 else None
