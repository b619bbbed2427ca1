"""One line of a log taken apart: time, level, the process that wrote it, the text.

Forms that are known (times are the host's local time):

- MindSpore   ``[ERROR] MODULE(pid,tid,python):2023-11-20-15:34:32.886.561 [x.cc:76] Func] text``
- plog        ``[ERROR] HCCL(pid,python):2025-10-28-16:34:59.634.432 [x.cc:50] [tid][Stage]text``
- code        ``EI0006: 2024-04-24-06:32:27.781.599 text``, ``EI0006: [PID: 12] TIME text`` and
  ``[PID: 12] TIME Some_Title(EL0004): text``
- MindFormers ``2023-08-01 10:00:00,123 - mindformers[file.py:87] - INFO - text`` and
  ``[INFO] 2023-08-01 10:00:00,123 [file.py:87] text``
- with the name of its rank before it, as log collectors write: ``worker-1: …``, ``[rank3]: …``,
  ``rank_3 | …``, ``[1,3]<stderr>:…``; and with ``file:line:`` before it, as grep does
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

_TIME = (
    r"(\d{4})[-/](\d\d)[-/](\d\d)[-T ](\d\d):(\d\d):(\d\d)"
    r"(?:[.,:](\d{3})(?:[.,]?(\d{3}))?)?"
)
_TIME_TEXT = re.compile(_TIME)
_TIME_BYTES = re.compile(_TIME.encode())
_PREFIX = re.compile(
    r"(?:\S{0,300}\.(?:log|txt|out|err):\d+:)?"
    r"(?:\[?(?:rank|worker)[ _-]?(\d{1,6})\]?(?::| \|) ?|\[\d+,(\d{1,6})\]<std(?:out|err)>: ?)?",
    re.IGNORECASE,
)
_LEVEL = re.compile(
    r"\[(DEBUG|INFO|EVENT|TRACE|WARNING|ERROR|CRITICAL)\]|"
    r"[-|] (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[-|]|"
    r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[: ]|"
    r":\d+: \w*(Warning): "  # as Python's warnings module writes
)
_PID = re.compile(r"\b[A-Z_]{2,20}\((\d+),|\[PID: ?(\d+)\]|\(PID:(\d+),")
_RANK_ID = re.compile(r"\bRankID:(\d+)\)")

_QUIET = ("DEBUG", "INFO", "EVENT", "TRACE", "WARNING", "Warning")


@dataclass(frozen=True)
class Line:
    """What a line says besides its text (which is without a rank's prefix).

    ``time`` is in seconds, the host's local time counted as if it were UTC; None: not in it.
    """

    text: str
    time: Optional[float] = None
    level: str = ""
    pid: Optional[int] = None
    rank: Optional[int] = None

    @property
    def quiet(self) -> bool:
        """It says itself that it is no error."""
        return self.level in _QUIET


def parse_line(raw: str) -> Line:
    """Take one line apart. Any text is a line; what cannot be found is left out."""
    prefix = _PREFIX.match(raw)
    text = raw[prefix.end() :] if prefix else raw
    number = (prefix.group(1) or prefix.group(2)) if prefix else None
    head = text[:300]
    level = _LEVEL.search(head)
    pid = _PID.search(head)
    own = _RANK_ID.search(head)
    if number is None and own is not None:
        number = own.group(1)
    return Line(
        text=text,
        time=time_in(head),
        level=next(filter(None, level.groups()), "") if level else "",
        pid=int(next(filter(None, pid.groups()))[:18]) if pid else None,
        rank=None if number is None or len(number) > 6 else int(number),
    )


def time_in(text: str) -> Optional[float]:
    """The first time in ``text``, in seconds; None when there is none."""
    for match in _TIME_TEXT.finditer(text):
        seconds = _seconds(*match.groups())
        if seconds is not None:
            return seconds
    return None


def first_time(data: bytes) -> Optional[float]:
    """The first time in a piece of a log."""
    for match in _TIME_BYTES.finditer(data):
        seconds = _seconds(*match.groups())
        if seconds is not None:
            return seconds
    return None


def last_time(data: bytes) -> Optional[float]:
    """The last time in a piece of a log."""
    for match in reversed(list(_TIME_BYTES.finditer(data))):
        seconds = _seconds(*match.groups())
        if seconds is not None:
            return seconds
    return None


def show_time(seconds: float) -> str:
    """``2024-05-21 11:57:54.167``."""
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return "?"
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _seconds(*parts: object) -> Optional[float]:
    year, month, day, hour, minute, second, milli, micro = (
        0 if part is None else int(part)  # type: ignore[call-overload]
        for part in parts
    )
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    return moment.timestamp() + milli / 1e3 + micro / 1e6
