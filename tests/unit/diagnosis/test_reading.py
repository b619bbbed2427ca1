"""Reading logs: any bytes, long ones in bounded memory, the right line numbers."""

from __future__ import annotations

import json
import re
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.diagnosis import reading
from orchestrator.diagnosis.cause import first_cause
from orchestrator.diagnosis.evidence import Case, Process
from orchestrator.diagnosis.reading import read_log, read_text
from orchestrator.diagnosis.report import block, record
from tests.unit.diagnosis import messages

STEP = b"2023-08-01 10:00:00,123 - mindformers - INFO - step:[%7d/900], loss:[3.1], %d ms\n"
ERROR = b"[ERROR] HCCL(12,python):2023-08-01-10:00:00.123.456 [x.cc:1] [2]EI0020: x\n"


def long_log(path, mebibytes, at):
    """A log of progress lines with an error as line ``at`` (0-based)."""
    lines = [STEP % (number, number * 7) for number in range(mebibytes * (1 << 20) // 83)]
    lines[at] = ERROR
    path.write_bytes(b"".join(lines))
    return len(lines)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("where", [0.0, 0.001, 0.3, 0.6, 0.999])
def test_an_error_anywhere_in_a_long_log_is_found(tmp_path, table, whole, where):
    log = tmp_path / "rank_0.log"
    count = long_log(log, 12, 0)
    at = int(where * (count - 1))
    long_log(log, 12, at)
    evidence = read_log(log, table, name="rank_0.log", whole=whole)
    assert [(f.signature.id, f.place.line) for f in evidence.findings] == [("EI0020", at + 1)]
    assert (evidence.skimmed > 0) is not whole


def test_memory_does_not_grow_with_the_log(tmp_path, table):
    small, large = tmp_path / "small.log", tmp_path / "large.log"
    small.write_bytes(ERROR * 20_000)
    large.write_bytes(ERROR * 200_000)
    peaks = []
    for log in (small, small, large):
        tracemalloc.start()
        evidence = read_log(log, table, whole=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert evidence.findings[0].count == 200_000
    assert peaks[2] < 1.5 * peaks[1]


def test_the_first_of_a_kind_is_kept_and_the_rest_counted(table):
    data = b"EI0006: 2024-01-01-00:00:0%d.000.000 x\n"
    evidence = read_text(b"".join(data % second for second in range(9)), table)
    (finding,) = evidence.findings
    assert (finding.count, finding.place.line, finding.last_time - finding.time) == (9, 1, 8.0)


def test_the_last_time_of_a_message_that_is_repeated_often(table):
    data = b"".join(b"EI0006: 2024-01-01-00:%02d:00.000.000 x\n" % (n % 60) for n in range(60))
    (finding,) = read_text(data, table).findings
    assert (finding.count, finding.last_time - finding.time) == (60, 59 * 60.0)


def test_a_line_without_a_time_has_that_of_the_lines_before(table):
    data = b"2024-01-01 00:00:00,000 - x - INFO - a\nTraceback (most recent\n  x\nKeyError: 'a'\n"
    (finding,) = read_text(data, table).findings
    assert finding.signature.id == "python-error"
    assert not finding.dated
    assert finding.time is not None


def test_a_progress_bar_hides_nothing(table):
    data = b"\r".join(b"%d%%|###" % number for number in range(900)) + b"\rKilled\n8 Killed\n"
    assert [f.place.line for f in read_text(data, table).findings] == [1]


def test_a_line_without_an_end_of_many_mebibytes(tmp_path, table, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 1 << 12)
    log = tmp_path / "x.log"
    log.write_bytes(b"\x00" * (1 << 16) + b"\n" + ERROR)
    assert [f.signature.id for f in read_log(log, table).findings] == ["EI0020"]


@pytest.mark.parametrize("size", [64, 100, 997])
def test_blocks_of_any_size_give_the_same(tmp_path, table, monkeypatch, size):
    data = b"".join([STEP % (1, 2), ERROR, b"\xff\n\n", b"KeyError: 'x'\n", b"EZ9999: y"])
    log = tmp_path / "x.log"
    log.write_bytes(data)
    once = read_log(log, table, name="x")
    monkeypatch.setattr(reading, "_BLOCK", size)
    again = read_log(log, table, name="x")
    assert [(f.signature.id, f.place, f.count) for f in again.findings] == [
        (f.signature.id, f.place, f.count) for f in once.findings
    ]


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            *(line.encode() for blocks in messages.ROOTS.values() for b in blocks for line in b),
            b"crimer rank [\x1b[31m/9999999999] status[LOST]",
            b"Failed to connect agent[1,-,3-2,99999999999999999999]",
            b"connected rankinfo[LINE 0]: [0000],[99999999999999999999999]",
            b"rankSize[999999] need connect rankNum is [0]",
            b"localUserrank[1]-localIpAddr[x/1]",
            b"9999-99-99-99:99:99.999.999",
            b"0001-01-01 00:00:00.000",
            b"\n",
            b"\r",
        ]
    ),
)


@given(st.lists(st.lists(PIECES, max_size=12), min_size=1, max_size=4), st.booleans())
@example([[b"EI0006: \x1b[2J\x9b31m\xe2\x80\xae x\n"]], True)
def test_no_bytes_make_it_fail_or_reach_the_terminal(table, logs, ended):
    processes = []
    for rank, pieces in enumerate(logs):
        data = b"".join(piece + b"\n" if len(piece) % 2 else piece for piece in pieces)
        evidence = read_text(data, table, name=f"rank_{rank}\x1b.log")
        processes.append(
            Process(
                f"rank_{rank}\x07", rank, "host\x1b", (evidence,), ended_by_us=ended and rank > 0
            )
        )
    answer = first_cause(Case(tuple(processes), len(logs)))
    for text in (*block(answer), json.dumps(record(answer), ensure_ascii=False)):
        assert not _CONTROL.search(text), text
    assert record(answer)["found"] is answer.found
