"""The controller's copies are exact prefixes, however the stream is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.mirror import Mirror
from orchestrator.errors import TransportError
from orchestrator.runs.layout import RunPaths

LOG = "ranks/rank_0/stdout.log"


@pytest.fixture
def mirror(tmp_path):
    made = Mirror(RunPaths(tmp_path), "a")
    yield made
    made.close()


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_any_overlapping_pieces_give_the_file_back(tmp_path_factory, content, cuts):
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    mirror = Mirror(paths, "a")
    for low, high in [*cuts, (0, len(content))]:
        low = min(low, mirror.offsets(["rank_0"])[LOG])
        mirror.append_data(LOG, low, content[low:high] if high > low else b"")
        copy = paths.log("rank_0").read_bytes() if paths.log("rank_0").exists() else b""
        assert content.startswith(copy)
    assert mirror.offsets(["rank_0"])[LOG] == len(content)


def test_a_hole_is_refused(mirror):
    mirror.append_data(LOG, 0, b"ab")
    with pytest.raises(TransportError, match="missing"):
        mirror.append_data(LOG, 5, b"x")


@pytest.mark.parametrize(
    "name",
    ["../x", "ranks/../../stdout.log", "/etc/passwd", "ranks/rank_0/other", "ranks//stdout.log"],
)
def test_a_hostile_file_name_goes_nowhere(mirror, name):
    with pytest.raises(TransportError, match="unexpected file name"):
        mirror.append_data(name, 0, b"x")


def test_journal_lines_keep_the_bytes_of_the_host(mirror, tmp_path):
    event = {"seq": 1, "wall": 1.5, "mono": 0.1, "event": "armed", "text": "日志\ud800"}
    line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
    mirror.append_event(len(line), event)
    mirror.append_event(len(line), event)
    assert RunPaths(tmp_path).host_journal("a").read_bytes() == line
    assert mirror.journal_offset() == len(line)
