"""The journal: nothing lost on a disk that is full now and then, nothing read by halves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import List, Tuple

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.node import journal
from orchestrator.node.folder import overwrite_json, read_json, replace_json
from orchestrator.node.journal import Journal


@given(st.lists(st.one_of(st.none(), st.integers(1, 200)), max_size=40), st.integers(1, 8))
def test_events_survive_short_and_failing_writes(
    tmp_path_factory, writes: List[int], count: int
) -> None:
    """None is a disk without room, a number what one write may take at most."""
    path = str(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    script = iter(writes)

    def write(descriptor: int, data: bytes) -> int:
        room = next(script, 1 << 20)
        if room is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[:room])

    book = Journal(path, write)
    for i in range(count):
        book.append("event", n=i)
        for _, event in journal.read(path):
            assert event["event"] == "event"  # never half a line
    while not book.flush():
        assert "No space left" in book.problem
    assert book.problem == ""
    book.sync()
    book.close()
    events = [event for _, event in journal.read(path)]
    assert [event["seq"] for event in events] == list(range(1, count + 1))
    assert [event["n"] for event in events] == list(range(count))


@given(st.lists(st.text(max_size=10), min_size=1, max_size=6), st.data())
def test_offsets_lead_to_the_rest(tmp_path_factory, texts: List[str], data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    book = Journal(str(path))
    for text in texts:
        book.append("said", text=text)
    book.close()
    whole = journal.read(str(path))
    assert whole[-1][0] == path.stat().st_size
    offset, _ = data.draw(st.sampled_from([(0, {}), *whole]))
    assert journal.read(str(path), offset) == [item for item in whole if item[0] > offset]


def test_unfinished_and_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert journal.read(str(path)) == []
    good = b'{"seq":1,"event":"armed"}\n'
    path.write_bytes(good + b"\0\0\xff\n" + b"[]\n" + b'{"seq":4,"ev')
    events: List[Tuple[int, str]] = [(end, e["event"]) for end, e in journal.read(str(path))]
    assert events == [(26, "armed"), (30, "unreadable"), (33, "unreadable")]


def test_small_files(tmp_path: Path) -> None:
    path = str(tmp_path / "heartbeat.json")
    assert read_json(path) is None
    replace_json(path, {"a": "x" * 100})
    assert os.listdir(tmp_path) == ["heartbeat.json"]
    overwrite_json(path, {"a": 1})
    assert Path(path).read_bytes() == b'{"a":1}\n'
    for half in ("", "{", "[]", '{"a":1}{'):
        Path(path).write_text(half)
        assert read_json(path) is None
    Path(path).write_text(json.dumps({"b": 2}))
    assert read_json(path) == {"b": 2}
