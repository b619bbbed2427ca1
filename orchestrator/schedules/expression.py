"""Cron expressions: checked, as times, and as the calendar events of systemd."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Collection, Iterator, List, Tuple

from cronsim import CronSim, CronSimError

from orchestrator.errors import UsageError
from orchestrator.problems import shown

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# What every cron understands: a step follows a star or a range, and there is no L, W or #.
_NUMBER = r"(?:\d{1,2}|[A-Za-z]{3})"
_ITEM = rf"(?:\*(?:/\d{{1,2}})?|{_NUMBER}(?:-{_NUMBER}(?:/\d{{1,2}})?)?)"
_FIELD = re.compile(rf"{_ITEM}(?:,{_ITEM})*", re.ASCII)
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True)
class Cron:
    """A cron expression of five fields, in the local time of this machine."""

    text: str

    def after(self, wall: float) -> float:
        """The first time after ``wall``; both in seconds since 1970."""
        return next(CronSim(self.text, datetime.fromtimestamp(wall))).timestamp()

    def until(self, wall: float, since: float, most: int) -> List[float]:
        """The times after ``since`` up to ``wall``, oldest first; of many the last ``most``."""
        times = list(islice(self._before(wall, since), most))
        return times[::-1]

    def calendars(self) -> Tuple[str, ...]:
        """Calendar events of systemd that stand for the same times.

        Two of them where both the day of the month and the weekday are restricted: for cron
        either is enough, for systemd both would be needed.
        """
        parsed = CronSim(self.text, datetime(2000, 1, 1))
        weekdays = {day % 7 for day in parsed.weekdays if isinstance(day, int)}
        names = ",".join(_WEEKDAYS[day] for day in sorted(weekdays)) if len(weekdays) < 7 else ""
        months = _listed(parsed.months, 12)
        days = _listed(parsed.days, 31)
        clock = f"{_listed(parsed.hours, 24)}:{_listed(parsed.minutes, 60)}:00"
        by_weekday = f"{names} *-{months}-{{}} {clock}".lstrip()
        if parsed.day_and:
            return (by_weekday.format(days),)
        return (f"*-{months}-{days} {clock}", by_weekday.format("*"))

    def _before(self, wall: float, since: float) -> Iterator[float]:
        # The search backwards begins before its start, which may itself be one of the times.
        start = datetime.fromtimestamp(int(wall) + 1)
        for moment in CronSim(self.text, start, reverse=True):
            if moment.timestamp() <= since:
                return
            yield moment.timestamp()


def parse_cron(text: str) -> Cron:
    """The expression ``text``, e.g. ``0 2 * * *`` or ``@daily``. Raises UsageError.

    Only what every cron understands is accepted, and only what ever comes.
    """
    whole = _MACROS.get(text.strip().lower(), text)
    fields = whole.split()
    hint = 'write minute, hour, day, month and weekday, e.g. "0 2 * * *" for two at night'
    if len(fields) != 5:
        raise UsageError(f"{shown(text)} is no cron expression of five fields", hint=hint)
    for field in fields:
        if _FIELD.fullmatch(field) is None:
            raise UsageError(
                f"{shown(field)} in the cron expression {shown(text)} is no list of numbers, "
                "ranges and steps",
                hint=hint,
            )
    cron = Cron(" ".join(fields))
    try:
        cron.after(0)
    except CronSimError as error:
        raise UsageError(f"cron expression {shown(text)}: {error}", hint=hint) from None
    except StopIteration:
        raise UsageError(
            f"the cron expression {shown(text)} never comes", hint="correct its day and month"
        ) from None
    return cron


def _listed(values: Collection[int], count: int) -> str:
    if len(values) == count:
        return "*"
    return ",".join(f"{value:02d}" for value in sorted(values))
