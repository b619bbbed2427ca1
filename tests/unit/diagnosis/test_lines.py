"""Lines of all known forms, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.diagnosis.lines import first_time, last_time, parse_line, show_time, time_in

MINDSPORE = (
    "[ERROR] DEVICE(2420702,fffe06ff,python):2023-11-20-15:34:32.886.561 "
    "[mindspore/ccsrc/x.cc:761] Dump] text"
)


@pytest.mark.parametrize(
    ("raw", "time", "level", "pid", "rank"),
    [
        (MINDSPORE, "2023-11-20 15:34:32.886", "ERROR", 2420702, None),
        ("[INFO] HCCL(686,python):2025-10-23-07:52:59.191.363 [h.cc:9] [8]text",
         "2025-10-23 07:52:59.191", "INFO", 686, None),
        ("[ERROR]HCCL(12,a_test):2025-10-23-17:28:06.049.385[t.cc:610][8][A]text",
         "2025-10-23 17:28:06.049", "ERROR", 12, None),
        ("[ERROR] HCCL(1265,):2025-10-21 07:56:47.198.454 [t.cc:1][2]x",
         "2025-10-21 07:56:47.198", "ERROR", 1265, None),
        ("EI0006: 2024-04-24-06:32:27.781.599 text", "2024-04-24 06:32:27.781", "", None, None),
        ("EI0006: [PID: 12] 2025-04-08-18:07:20.444.436 text",
         "2025-04-08 18:07:20.444", "", 12, None),
        ("[PID:37]2025-10-23-17:30:40.098.984Config_Error(EI0001): text",
         "2025-10-23 17:30:40.098", "", 37, None),
        ("2023-08-01 10:00:00,123 - mindformers[t.py:87] - INFO - text",
         "2023-08-01 10:00:00.123", "INFO", None, None),
        ("[WARNING] ME(5:281,MainProcess):2023-08-01 10:00:00.123 [x] text",
         "2023-08-01 10:00:00.123", "WARNING", None, None),
        ("[ERROR] 2024-05-21-11:57:54 (PID:927, Device:3, RankID:3) ERR02200 text",
         "2024-05-21 11:57:54.000", "ERROR", 927, 3),
        ("worker-1: EH9999: Inner Error!", None, "", None, 1),
        ("[rank7]: Traceback (most recent call last):", None, "", None, 7),
        ("rank_12 | text", None, "", None, 12),
        ("[1,3]<stderr>:text", None, "", None, 3),
        ("debug/plog/plog-3_2.log:14:[ERROR] HCCL(3,x):2026-02-05-18:44:26.379.542 [t] text",
         "2026-02-05 18:44:26.379", "ERROR", 3, None),
        ("/usr/lib/x.py:12: UserWarning: ImportError", None, "Warning", None, None),
        ("no form at all", None, "", None, None),
        ("2023-99-99-99:99:99 no time", None, "", None, None),
        ("", None, "", None, None),
    ],
)  # fmt: skip
def test_known_forms(raw, time, level, pid, rank):
    line = parse_line(raw)
    assert (line.level, line.pid, line.rank) == (level, pid, rank)
    assert (None if line.time is None else show_time(line.time)) == time


def test_the_name_of_the_rank_is_not_part_of_the_text():
    assert parse_line("worker-1: EH9999: Inner Error!").text == "EH9999: Inner Error!"
    assert parse_line("a/b.log:14:[ERROR] x").text == "[ERROR] x"


def test_first_and_last_time_of_a_piece():
    data = b"x\n2024-01-01 00:00:00 a\n9999-99-99 00:00:00\n2024-01-01 00:00:05 b\nc"
    assert last_time(data) - first_time(data) == 5.0
    assert first_time(b"nothing") is None
    assert last_time(b"2024-13-01 00:00:00") is None


@given(st.text())
def test_any_text_is_a_line(text):
    line = parse_line(text)
    assert text.endswith(line.text)
    assert line.time == time_in(line.text[:300])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_time_can_be_shown(seconds):
    assert show_time(seconds)
