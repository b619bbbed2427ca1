"""A run of ours as a case: what the journals know is used."""

from __future__ import annotations

import json

import pytest

from orchestrator.diagnosis.cause import first_cause
from orchestrator.diagnosis.report import headline
from orchestrator.diagnosis.signatures import load_table
from orchestrator.engine.diagnose import diagnose_run, run_case, tables
from orchestrator.errors import SpecError
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunStore

HOSTS = {"a": [0, 1], "b": [2, 3]}
STARTED = 1_704_067_200.0  # 2024-01-01 00:00:00 UTC; the hosts' local time is two hours later


@pytest.fixture(scope="module")
def table():
    return load_table()


@pytest.fixture
def run(tmp_path):
    """A run of four ranks on two hosts; ``b``'s clock is 20 s ahead."""
    paths = RunStore(tmp_path).create("train-1")
    hosts = [
        {"name": host, "processes": [{"name": f"rank_{r}", "rank": r} for r in ranks]}
        for host, ranks in HOSTS.items()
    ]
    Journal(paths.journal, clock=lambda: STARTED).append(
        "launch", cluster="c", mode="train", recipe="r", world_size=4, hosts=hosts
    )
    Journal(paths.journal).append("running")
    for host, ahead in (("a", 0.0), ("b", 20.0)):
        beat = paths.host_beat(host)
        beat.parent.mkdir(parents=True)
        beat.write_text(json.dumps({"wall": STARTED + 60, "ahead": ahead}))
        for rank in HOSTS[host]:
            event(paths, host, STARTED + ahead, "process_started", name=f"rank_{rank}", rank=rank)
    return paths


def event(paths, host, wall, kind, **fields):
    Journal(paths.host_journal(host), clock=lambda: wall).append(kind, **fields)


def log(paths, rank, *lines):
    """Lines at seconds of the host's own clock, in its local time."""
    text = "".join(
        line.format(f"2024-01-01-02:00:{second:02d}.000.000") + "\n" for second, line in lines
    )
    paths.logs.mkdir(exist_ok=True)
    paths.log(f"rank_{rank}").write_text(text)


def exited(paths, host, rank, second, code, *, collateral=False):
    fields = {"name": f"rank_{rank}", "rank": rank, "code": code, "collateral": collateral}
    event(paths, host, STARTED + second, "process_exited", **fields)


def test_clocks_exits_and_collateral_are_used(run, table):
    log(run, 0, (1, "{} start"), (40, "EL0004: {} Failed to allocate"))
    log(run, 1, (1, "{} start"))
    log(run, 2, (21, "{} start"), (50, "EJ0001: {} Failed to initialize"))  # at 30 by our clock
    log(run, 3, (21, "{} start"), (45, "EJ0002: {} down"))  # earlier still, but we ended it
    exited(run, "a", 0, 41, 1)
    exited(run, "a", 1, 42, 143, collateral=True)
    exited(run, "b", 2, 51, 1)
    exited(run, "b", 3, 62, 143, collateral=True)
    answer = diagnose_run(run, table)
    assert [process.label() for process in answer.who] == ["rank 2 on b"]
    assert answer.signature.id == "EJ0001"
    assert answer.collateral == ("1", "3")
    assert answer.finding.place.file == "logs/rank_2.log"
    assert not any("clocks" in note for note in answer.notes)


def test_a_signal_is_put_in_time_beside_the_lines_of_the_logs(run, table):
    """Journals hold Unix time, logs local time: the exit at 30 s is before the line at 40 s."""
    for rank, host in ((0, "a"), (1, "a"), (2, "b"), (3, "b")):
        log(run, rank, (1 if host == "a" else 21, "{} start"))
    log(run, 0, (1, "{} start"), (40, "EL0004: {} Failed to allocate"))
    exited(run, "a", 1, 30, 137)
    exited(run, "a", 0, 41, 1)
    answer = diagnose_run(run, table)
    assert [process.rank for process in answer.who] == [1]
    assert answer.signature.id == "killed"


def test_lines_without_any_time_have_that_of_the_end(run, table):
    log(run, 0, (1, "ValueError: later"))
    log(run, 3, (1, "KeyError: earlier"))
    exited(run, "a", 0, 41, 1)
    exited(run, "b", 3, 60, 1)  # at 40 by our clock
    answer = diagnose_run(run, table)
    assert [process.rank for process in answer.who] == [3, 0]


def test_a_live_run_can_be_judged(run, table):
    log(run, 0, (1, "{} start"))
    log(run, 1, (1, "{} start"), (40, "EI0020: {} port"))
    case = run_case(run, table)
    assert all(process.running for process in case.processes)
    assert [process.rank for process in first_cause(case).who] == [1]


def test_a_host_that_was_given_up_is_the_cause(run, table):
    for rank in (0, 1):
        log(run, rank, (1, "{} start"))
        exited(run, "a", rank, 90, 143, collateral=True)
    Journal(run.journal).append(
        "decision", action="stop", rule="host-silent", evidence={"host": "b", "silent_s": 60.0}
    )
    Journal(run.journal).append("end", outcome="failed", exit_status=5, cause=None)
    answer = diagnose_run(run, table)
    assert (answer.rule, [process.rank for process in answer.who]) == ("host-lost", [2, 3])
    assert answer.reason == "b was not heard of for too long"


def test_a_hang_names_the_ranks_that_were_behind(run, table):
    for rank, host in ((0, "a"), (1, "a"), (2, "b"), (3, "b")):
        log(run, rank, (1 if host == "a" else 21, "{} start"))
        exited(run, host, rank, 90, 143, collateral=True)
    sentence = "no rank got on for 601 s (limit 600 s), after step 20; behind the others: rank 2"
    evidence = {"host": "b", "sentence": sentence, "ranks": [2]}
    Journal(run.journal).append("decision", action="stop", rule="hang", evidence=evidence)
    Journal(run.journal).append("end", outcome="failed", exit_status=7, cause=None)
    answer = diagnose_run(run, table)
    assert (answer.rule, [process.rank for process in answer.who]) == ("hang", [2])
    assert headline(answer) == sentence


def test_without_logs_and_journals_nothing_is_found(run, table):
    assert not diagnose_run(run, table).found


def test_the_users_own_table_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    builtin = len(tables().signatures)
    own = tmp_path / "glm2-orch/signatures.yaml"
    own.parent.mkdir()
    own.write_text(
        "schema: 1\nsignatures:\n"
        "  - {id: ours, regex: license expired, role: root, meaning: no license, remedy: renew}\n"
    )
    assert tables().find("the license expired")[0].id == "ours"
    assert len(tables().signatures) == builtin + 1
    own.write_text("schema: 1\nsignatures: []\nx: [")
    with pytest.raises(SpecError, match=r"signatures\.yaml:3"):
        tables()
