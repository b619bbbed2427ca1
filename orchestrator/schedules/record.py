"""What became of the times of a schedule, from its journal. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple

from orchestrator.schedules.expression import Cron

Event = Mapping[str, Any]
_MOST = 500
_LATE_S = 90.0


@dataclass(frozen=True)
class ScheduledRun:
    """One run. Times in seconds since 1970; ``ended`` and ``exit_status`` are None while it goes
    on, or where it was cut off."""

    started: float
    run_id: Optional[str] = None
    log: Optional[str] = None
    ended: Optional[float] = None
    exit_status: Optional[int] = None


@dataclass(frozen=True)
class Record:
    """The past of a schedule, and its next time."""

    next: float
    last: Optional[ScheduledRun]
    skipped: Tuple[float, ...]
    """Times at which an earlier run was still going on."""
    missed: Tuple[float, ...]
    """Times at which nothing was started: the machine or its cron was off."""


def read_record(cron: Cron, events: Iterable[Event], now: float, *, running: bool) -> Record:
    """Compare the last 500 times that ``cron`` names with what the journal holds.

    ``running``: whether the last run goes on now.
    """
    events = list(events)
    runs = _runs(events)
    added = next((float(event["wall"]) for event in events if event["event"] == "added"), now)
    # A starter may be some seconds late; what is due just now is not missed yet.
    due = cron.until(now - _LATE_S, added, _MOST)
    seen = sorted(float(e["wall"]) for e in events if e["event"] in ("started", "skipped"))
    skipped = [float(event["wall"]) for event in events if event["event"] == "skipped"]
    ends = [run.started if run.ended is None else run.ended for run in runs]
    if running and runs:
        ends[-1] = math.inf
    missed: List[float] = []
    for moment, following in zip(due, [*due[1:], math.inf]):
        answered = bisect_left(seen, moment)
        if answered < len(seen) and seen[answered] < following:
            continue
        # systemd says nothing when it passes over a time because the last run still goes on.
        busy = any(run.started < moment <= end for run, end in zip(runs, ends))
        (skipped if busy else missed).append(moment)
    return Record(
        next=cron.after(now),
        last=runs[-1] if runs else None,
        skipped=tuple(sorted(skipped)),
        missed=tuple(missed),
    )


def last_run(events: Iterable[Event]) -> Optional[ScheduledRun]:
    """The run that was started last."""
    runs = _runs(list(events))
    return runs[-1] if runs else None


def _runs(events: Sequence[Event]) -> List[ScheduledRun]:
    runs: List[ScheduledRun] = []
    for event in events:
        if event["event"] == "started":
            runs.append(ScheduledRun(event["wall"], event.get("run_id"), event.get("log")))
        elif event["event"] == "ended" and runs:
            runs[-1] = replace(runs[-1], ended=event["wall"], exit_status=event["exit_status"])
    return runs
