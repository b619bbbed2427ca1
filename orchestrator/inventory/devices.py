"""Device lists: ``[0,8)``, the guide's ``[0,8]``, ``0,1,4,5``; and what a 910 server allows."""

from __future__ import annotations

import re
from typing import Optional, Sequence, Tuple

_RANGE = re.compile(r"\[\s*(\d{1,5})\s*,\s*(\d{1,5})\s*[)\]]")
_LIST = re.compile(r"\d{1,5}(\s*,\s*\d{1,5})*")
_MOST = 1024

FOURS_OF_910 = (
    (0, 1, 2, 3),
    (0, 1, 4, 5),
    (0, 2, 4, 6),
    (0, 3, 4, 7),
    (1, 2, 5, 6),
    (1, 3, 5, 7),
    (2, 3, 6, 7),
    (4, 5, 6, 7),
)
"""Sets of four devices that HCCL accepts on a 910 server."""


class DevicesError(ValueError):
    """A device list that cannot be read; ``hint`` says what to write."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def parse_devices(text: str) -> Tuple[int, ...]:
    """Device ids of a range or list, ascending.

    A range is half-open however it is closed: ``[0,8)`` and ``[0,8]`` are both 0 to 7, as
    in MindFormers' ``run_distribute.sh``. Raises DevicesError.

    >>> parse_devices("[0, 8]") == parse_devices("[0,8)") == tuple(range(8))
    True
    >>> parse_devices("0,1,4,5")
    (0, 1, 4, 5)
    """
    found = _RANGE.fullmatch(text.strip())
    if found:
        low, high = int(found.group(1)), int(found.group(2))
        if high <= low:
            raise DevicesError(
                f"device range {text.strip()} is empty", 'write e.g. "[0,8)" for devices 0 to 7'
            )
        return check_devices(range(low, high))
    if _LIST.fullmatch(text.strip()):
        return check_devices([int(item) for item in text.split(",")])
    raise DevicesError(
        f"`{text.strip()}` is not a device range or list",
        'write a half-open range such as "[0,8)" for devices 0 to 7, or a list such as "0,1,4,5"',
    )


def check_devices(ids: Sequence[int]) -> Tuple[int, ...]:
    """``ids`` as a tuple if they are ascending and not too many; raises DevicesError."""
    devices = tuple(ids)
    if not devices:
        raise DevicesError("no device is listed", 'write e.g. "[0,8)"')
    if len(devices) > _MOST or devices[-1] >= 65_536:
        raise DevicesError(f"{len(devices)} devices up to {devices[-1]}", "a server has 8 or 16")
    if any(b <= a for a, b in zip(devices, devices[1:])):
        raise DevicesError(
            "device ids must be ascending and without repetition", "sort them: rank ids follow them"
        )
    return devices


def unfit_for_910(devices: Sequence[int]) -> Optional[Tuple[str, str]]:
    """Why ``devices`` cannot be used on a 910 server (message and fix); None when they can.

    Source: HCCL's rank table rules, ascend 910 (physical ids 0 to 7; eight sets of four).
    """
    if devices[-1] > 7:
        return (
            f"device {devices[-1]} does not exist on a 910 server, which has devices 0 to 7",
            'write "[0,8)": ranks beyond the first server are numbered by the planner',
        )
    if len(devices) == 4 and tuple(devices) not in FOURS_OF_910:
        sets = " ".join("{" + ",".join(map(str, four)) + "}" for four in FOURS_OF_910)
        return ("HCCL does not accept these four devices on a 910 server", f"use one of {sets}")
    return None
