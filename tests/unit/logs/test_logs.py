"""Rank sets, printable text and tailing of growing files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.logs.ranks import format_ranks, parse_ranks
from orchestrator.logs.tail import read_lines
from orchestrator.logs.text import decode_line, printable


def test_parse_ranks():
    assert parse_ranks("0-2, 9") == {0, 1, 2, 9}


@pytest.mark.parametrize("bad", ["", "a", "3-1", "1-", "-1", "0,,1", "0-9999999999"])
def test_parse_ranks_names_the_fault(bad):
    with pytest.raises(UsageError):
        parse_ranks(bad)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranks_round_trip(ranks):
    assert parse_ranks(format_ranks(ranks)) == ranks


@given(st.text())
def test_printable_has_no_control_characters(text):
    shown = printable(text)
    assert not [
        char for char in shown if char != "\t" and (ord(char) < 32 or 127 <= ord(char) < 160)
    ]


def test_decode_line_keeps_the_last_state_of_a_progress_bar():
    assert decode_line(b"10%\r50%\r100%\r") == "100%"
    assert decode_line(b"bad \xff byte") == "bad � byte"
    assert decode_line("损失".encode()) == "损失"


def test_read_lines_gives_a_torn_last_line(tmp_path):
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"1\n2\n3")
    two.write_bytes(b"x\n")
    found = list(read_lines({"a": one, "b": two, "absent": tmp_path / "c"}))
    assert found == [("a", b"1"), ("a", b"2"), ("b", b"x"), ("a", b"3")]


@pytest.mark.parametrize(
    ("last", "expected"), [(0, []), (1, [b"3"]), (2, [b"2", b"3"]), (9, [b"1", b"2", b"3"])]
)
def test_last_lines(tmp_path, last, expected):
    path = tmp_path / "a"
    path.write_bytes(b"1\n2\n3\n")
    assert [line for _, line in read_lines({"a": path}, last=last)] == expected


def test_follow_waits_for_what_is_written_later(tmp_path):
    path = tmp_path / "a"
    pending = [b"first\nsec", b"ond\n", b"third"]

    def write_more(_seconds: float) -> None:
        with path.open("ab") as stream:
            stream.write(pending.pop(0))

    lines = read_lines({"a": path}, follow=True, ended=lambda: not pending, wait=write_more)
    assert [line for _, line in lines] == [b"first", b"second", b"third"]
