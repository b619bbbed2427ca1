"""Cron expressions: what is refused, which times they name, and the same times for systemd."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.schedules.expression import parse_cron


def wall(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 2 * *", "five fields"),
        ("0 2 * * * *", "five fields"),
        ("@reboot", "five fields"),
        ("", "five fields"),
        ("61 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 30 2 *", "day-of-month"),
        ("0 0 * * 5#2", "'5#2'"),
        ("0 0 L * *", "'L'"),
        ("5/10 * * * *", "'5/10'"),
        ("*/0 * * * *", "minute"),
        ("0 0 * * \x1b[2J", r"\x1b[2J"),
        ("0 0 * * *;reboot", "'*;reboot'"),
        ("0 0 * * %", "'%'"),
    ],
)
def test_what_no_cron_understands_is_refused(text, said):
    with pytest.raises(UsageError) as refused:
        parse_cron(text)
    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert refused.value.hint


def test_the_next_time():
    assert parse_cron("0 2 * * *").after(wall("2026-01-05 02:00")) == wall("2026-01-06 02:00")
    assert parse_cron("@daily").after(wall("2026-01-31 23:59")) == wall("2026-02-01 00:00")
    assert parse_cron("0 0 13 * FRI").after(wall("2026-01-03")) == wall("2026-01-09 00:00")


def test_the_times_behind_us_end_with_now_and_begin_after_the_start():
    cron = parse_cron("0 2 * * *")
    start, now = wall("2026-01-01 02:00"), wall("2026-01-04 02:00")
    assert cron.until(now, start, 10) == [wall(f"2026-01-0{day} 02:00") for day in (2, 3, 4)]
    assert cron.until(now, start, 2) == [wall(f"2026-01-0{day} 02:00") for day in (3, 4)]


@given(st.integers(0, 59), st.integers(0, 23), st.integers(1_700_000_000, 1_900_000_000))
def test_backward_and_forward_agree(minute, hour, now):
    cron = parse_cron(f"{minute} {hour} * * *")
    coming = cron.after(now)
    assert coming > now
    assert cron.until(coming, now, 5)[-1] == coming
    assert coming not in cron.until(coming - 1, now - 86_400 * 3, 5)


EXPRESSIONS = (
    "0 2 * * *",
    "*/15 8-18 * * MON-FRI",
    "30 4 1,15 * 5",
    "0 0 */2 * 1",
    "5 4 29 2 *",
    "@weekly",
    "0-30/10 */6 * JAN,jul sun",
)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_systemd_names_the_same_times(text):
    cron = parse_cron(text)
    ours, theirs = [wall("2026-01-01 00:00")], set()
    while len(ours) < 8:
        ours.append(cron.after(ours[-1]))
    for calendar in cron.calendars():
        command = ["systemd-analyze", "calendar", "--iterations=8", calendar]
        said = subprocess.run(
            [*command, "--base-time=2026-01-01 00:00:00"],
            capture_output=True,
            text=True,
            env={"LC_ALL": "C"},
        )
        assert said.returncode == 0, said.stderr
        for line in said.stdout.splitlines():
            label, _, moment = line.partition(": ")
            if "elapse" in label or "Iter" in label:
                theirs.add(" ".join(moment.split()[1:3]))
    stamps = [f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M:%S}" for moment in ours[1:]]
    assert sorted(theirs)[: len(stamps)] == stamps
