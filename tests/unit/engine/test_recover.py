"""What is kept of attempts, and whether another may follow."""

from __future__ import annotations

import pytest

from orchestrator.engine.recover import (
    Record,
    attempts_shown,
    current_attempt,
    forbid,
    is_forbidden,
    is_open,
    keep,
    kept,
    record_file,
)
from orchestrator.errors import OrchError
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunStore
from orchestrator.watching.retry import Attempt, Policy

OPTIONS = {"inventory_file": "c.yaml", "limit": None, "request": {"settings": ("a=1",)}}


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def attempt(store, number=1, *, restarts=3, outcome="failed"):
    record = Record("job", number, Policy(max_restarts=restarts), OPTIONS, "/somewhere")
    paths = store.create(record.run_id)
    keep(paths, record)
    journal = Journal(paths.journal)
    journal.append("running")
    if outcome:
        journal.append("end", outcome=outcome, exit_status=6)
    return paths, journal


def test_what_is_kept_is_read_again(store):
    paths, _ = attempt(store)
    record = kept(paths)
    assert record is not None
    assert (record.first, record.policy.max_restarts, record.folder) == ("job", 3, "/somewhere")
    assert record.options["request"]["settings"] == ["a=1"]
    assert record_file(paths).stat().st_mode & 0o777 == 0o600
    later = Record("job", 2, Policy(3), OPTIONS, "/", (Attempt("failed", step=4),), ("n1",), "job")
    keep(paths, later)
    assert kept(paths) == Record(
        *("job", 2, Policy(3), record.options, "/"), (Attempt("failed", step=4),), ("n1",), "job"
    )
    record_file(paths).write_text("{")
    with pytest.raises(OrchError, match="cannot read"):
        kept(paths)


def test_what_was_kept_stays_until_the_new_is_whole(store, monkeypatch):
    """The controller may be stopped in between, and another take over."""
    paths, _ = attempt(store)
    before = kept(paths)

    def stand_still(*_):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", stand_still)
        with pytest.raises(SystemExit):
            keep(paths, Record("job", 2, Policy(), OPTIONS, "/"))
    assert kept(paths) == before


def test_a_long_name_leaves_room_for_its_number():
    record = Record("x" * 64, 12, Policy(), {}, "/")
    assert len(record.run_id) <= 64
    assert record.run_id.endswith(".12")


def test_only_a_failure_that_nobody_asked_for_is_open(store):
    assert is_open(store, attempt(store)[0])
    assert not is_open(store, attempt(store, 2, restarts=0)[0])
    assert not is_open(store, attempt(store, 3, outcome="succeeded")[0])
    assert not is_open(store, attempt(store, 4, outcome=None)[0])
    paths, journal = attempt(store, 5)
    journal.append("decision", action="stop", rule="stop-requested", evidence={})
    assert not is_open(store, paths), "a rank failed while an operator stopped the run"


def test_an_attempt_that_was_decided_but_never_begun_is_open_again(store):
    paths, journal = attempt(store)
    journal.append("recovery", action="restart", rule="passing", sentence="again", next="job.2")
    assert is_open(store, paths)
    second, _ = attempt(store, 2, outcome=None)
    assert not is_open(store, paths)
    assert current_attempt(store, paths) == second
    assert current_attempt(store, second) == second
    shown = attempts_shown(store, second)
    assert [(one["run_id"], one["outcome"]) for one in shown] == [
        ("job", "failed"),
        ("job.2", None),
    ]


def test_a_stop_between_two_attempts_holds(store):
    paths, _ = attempt(store)
    forbid(paths)
    assert is_forbidden(paths)
    assert not is_open(store, paths)
