"""What became of the times of a schedule."""

from __future__ import annotations

from datetime import datetime

from orchestrator.schedules.expression import parse_cron
from orchestrator.schedules.record import read_record

NIGHTLY = parse_cron("0 2 * * *")


def at(day: int, hour: int = 2, minute: int = 0) -> float:
    return datetime(2026, 1, day, hour, minute).timestamp()


def event(kind: str, wall: float, **fields: object) -> dict:
    return {"event": kind, "wall": wall, **fields}


def run(day: int, end: float, status: int = 0) -> list:
    return [
        event("started", at(day) + 1, run_id=f"n-{day}", log=f"{day}.log"),
        event("ended", end, exit_status=status, run_id=f"n-{day}"),
    ]


ADDED = event("added", at(1, 12))


def test_nothing_happened_yet():
    record = read_record(NIGHTLY, [ADDED], at(1, 13), running=False)
    assert (record.next, record.last, record.skipped, record.missed) == (at(2), None, (), ())


def test_the_last_run_counts():
    events = [ADDED, *run(2, at(2, 5)), *run(3, at(3, 4), status=6)]
    record = read_record(NIGHTLY, events, at(3, 12), running=False)
    assert record.last is not None
    assert (record.last.run_id, record.last.exit_status) == ("n-3", 6)
    assert record.missed == ()


def test_a_time_without_a_start_was_missed():
    events = [ADDED, *run(2, at(2, 5)), *run(5, at(5, 5))]
    assert read_record(NIGHTLY, events, at(5, 12), running=False).missed == (at(3), at(4))


def test_a_late_start_makes_up_for_its_time():
    late = [event("started", at(2, 9), run_id="n"), event("ended", at(2, 10), exit_status=0)]
    assert read_record(NIGHTLY, [ADDED, *late], at(2, 12), running=False).missed == ()


def test_a_time_that_is_just_due_is_not_missed_yet():
    assert read_record(NIGHTLY, [ADDED], at(2) + 30, running=False).missed == ()
    assert read_record(NIGHTLY, [ADDED], at(2) + 120, running=False).missed == (at(2),)


def test_times_during_a_run_were_skipped_whether_anyone_said_so_or_not():
    said = event("skipped", at(3) + 1, reason="its last run has not ended")
    events = [ADDED, *run(2, at(4, 12)), said]
    record = read_record(NIGHTLY, events, at(4, 13), running=False)
    assert [round(wall - at(3)) for wall in record.skipped] == [1, 86_400]
    assert record.missed == ()


def test_a_run_that_was_cut_off_does_not_hide_missed_times():
    cut = event("started", at(2) + 1, run_id="n-2", log="2.log")
    assert read_record(NIGHTLY, [ADDED, cut], at(4, 12), running=False).missed == (at(3), at(4))
    going_on = read_record(NIGHTLY, [ADDED, cut], at(4, 12), running=True)
    assert going_on.missed == ()
    assert going_on.skipped == (at(3), at(4))
