"""The quarantine's file: durable, private, whole under concurrent writers."""

from __future__ import annotations

import fcntl
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Busy, HostNotReady, SpecError
from orchestrator.runs import quarantine
from orchestrator.runs.quarantine import OPERATOR, PREFLIGHT, Quarantine


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Quarantine:
    return Quarantine(tmp_path, "c", clock)


def shown(kept: Quarantine) -> list[tuple[str, str, str, object]]:
    return [(e.host, e.reason, e.by, e.until) for e in kept.entries()]


def test_nobody_is_quarantined_at_first(kept: Quarantine) -> None:
    assert kept.entries() == ()
    assert not kept.file.exists()


def test_entries_are_kept_by_name_and_expire(kept: Quarantine, clock: Clock) -> None:
    kept.add({"n2": "no link", "n1": "ECC"}, by=PREFLIGHT, lasting=60.0)
    clock.now += 10
    kept.add({"n3": "in repair"}, by=OPERATOR)
    assert shown(kept) == [
        ("n1", "ECC", "preflight", 1060.0),
        ("n2", "no link", "preflight", 1060.0),
        ("n3", "in repair", "operator", None),
    ]
    clock.now = 1060.0
    assert [entry.host for entry in kept.entries()] == ["n3"]
    kept.add({"n4": "x"}, by=OPERATOR)
    assert [host["host"] for host in json.loads(kept.file.read_text())["hosts"]] == ["n3", "n4"]


def test_release_says_whom_it_released(kept: Quarantine) -> None:
    kept.add({"n1": "a", "n2": "b"}, by="run-7")
    assert [entry.host for entry in kept.release(["n2", "n9"])] == ["n2"]
    assert [entry.host for entry in kept.entries()] == ["n1"]
    assert kept.release(["n2"]) == ()


def test_only_the_operator_shortens_a_quarantine(kept: Quarantine, clock: Clock) -> None:
    kept.add({"n1": "in repair"}, by=OPERATOR)
    assert kept.add({"n1": "ECC"}, by=PREFLIGHT, lasting=60.0)[0].reason == "in repair"
    kept.add({"n1": "soon back"}, by=OPERATOR, lasting=30.0)
    assert shown(kept) == [("n1", "soon back", "operator", 1030.0)]
    kept.add({"n1": "ECC"}, by=PREFLIGHT, lasting=60.0)
    assert shown(kept) == [("n1", "ECC", "preflight", 1060.0)]


def test_clusters_are_apart_and_any_name_makes_a_file(tmp_path: Path) -> None:
    for name in ("c", "../c", "a/b", "..", "机群"):
        Quarantine(tmp_path, name).add({"n": name}, by=OPERATOR)
    for name in ("c", "../c", "a/b", "..", "机群"):
        assert [entry.reason for entry in Quarantine(tmp_path, name).entries()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"quarantine"}


def test_the_state_is_private(kept: Quarantine) -> None:
    kept.add({"n": "x"}, by=OPERATOR)
    assert stat.S_IMODE(kept.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.file.parent.stat().st_mode) == 0o700


def test_a_reason_is_one_short_line(kept: Quarantine) -> None:
    (entry,) = kept.add({"n": "a\n\tb\x1b[31m" + "c" * 400}, by=PREFLIGHT)
    assert entry.reason.startswith("a b?[31mccc")
    assert len(entry.reason) == 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema": 2, "cluster": "c", "hosts": []}',
        '{"schema": 1, "cluster": "d", "hosts": []}',
        '{"schema": 1, "cluster": "c", "hosts": [{"host": "n"}]}',
        '{"schema": 1, "cluster": "c", "hosts": [{"host": 1, "reason": "", "by": "", "since": 1}]}',
        '{"schema":1,"cluster":"c","hosts":[{"host":"n","reason":"","by":"","since":1,"until":1e99}]}',
        '{"schema": 1, "cluster": "c", "hosts": [{"host":"n","reason":"","by":"","since":"now"}]}',
    ],
)
def test_a_damaged_file_is_an_error_with_its_place(kept: Quarantine, text: str) -> None:
    kept.file.parent.mkdir()
    kept.file.write_text(text)
    with pytest.raises(SpecError, match="the quarantine of c is damaged") as caught:
        kept.entries()
    assert str(kept.file) in str(caught.value)
    with pytest.raises(SpecError):
        kept.add({"n": "x"}, by=OPERATOR)
    assert kept.file.read_text() == text  # never lost by a writer that could not read it


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "quarantine").write_text("a file")
    with pytest.raises(HostNotReady, match="cannot keep the quarantine"):
        Quarantine(tmp_path, "c").add({"n": "x"}, by=OPERATOR)


def test_a_writer_that_does_not_let_go(kept: Quarantine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.add({"n": "x"}, by=OPERATOR)
    monkeypatch.setattr(quarantine, "_LOCK_TRIES", 2)
    with kept.file.with_suffix(".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another command is changing the quarantine of c"):
            kept.release(["n"])
        assert len(kept.entries()) == 1  # reading needs no lock
    assert len(kept.release(["n"])) == 1


WRITER = """
import sys
from pathlib import Path
from orchestrator.runs.quarantine import Quarantine
kept = Quarantine(Path(sys.argv[1]), "c")
for i in range(20):
    kept.add({f"{sys.argv[2]}{i}": "x"}, by="operator")
    kept.release([f"{sys.argv[2]}{i - 1}"] if i % 2 else [])
    kept.entries()
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    found = {entry.host for entry in Quarantine(tmp_path, "c").entries()}
    assert found == {f"{name}{i}" for name in "abc" for i in range(1, 20, 2)}


hosts = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.tuples(
        st.just("add"), hosts, st.none() | st.floats(1, 50), st.sampled_from(["operator", "r"])
    )
    | st.tuples(st.just("release"), hosts)
    | st.tuples(st.just("wait"), st.floats(0, 30)),
    max_size=15,
)


@given(steps=steps)
def test_the_file_is_a_map_with_expiry(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    clock = Clock()
    kept = Quarantine(tmp_path_factory.mktemp("q"), "c", clock)
    model: dict[str, float] = {}
    for kind, *rest in steps:
        if kind == "add":
            host, lasting, by = rest
            kept.add({host: "x"}, by=by, lasting=lasting)
            end = float("inf") if lasting is None else clock.now + lasting
            model[host] = end if by == OPERATOR else max(end, model.get(host, 0.0))
        elif kind == "release":
            kept.release(rest)
            model.pop(rest[0], None)
        else:
            clock.now += rest[0]
        model = {host: end for host, end in model.items() if end > clock.now}
        assert {e.host: e.until or float("inf") for e in kept.entries()} == model
