"""Run ids, the journal, the lease and the merged state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest

from orchestrator.errors import Busy, UsageError
from orchestrator.job import check_run_id
from orchestrator.runs import lease
from orchestrator.runs.journal import Journal, last_events, read_events
from orchestrator.runs.layout import RunStore, home, new_run_id
from orchestrator.runs.state import ProcessStatus, RunStatus, merge_state, read_state

LAUNCH = {
    "event": "launch",
    "wall": 100.0,
    "cluster": "c",
    "mode": "finetune",
    "recipe": "dynamic_cluster",
    "world_size": 2,
    "hosts": [
        {
            "name": "a",
            "processes": [{"name": "scheduler", "rank": None}, {"name": "rank_0", "rank": 0}],
        },
        {"name": "b", "processes": [{"name": "rank_1", "rank": 1}]},
    ],
}


@pytest.fixture
def store(tmp_path):
    clock = iter(range(100, 1000))
    made = RunStore(tmp_path)
    for run_id in ("finetune-1", "finetune-2", "eval-1"):
        paths = made.create(run_id)
        Journal(paths.journal, clock=lambda: float(next(clock))).append(
            **{key: value for key, value in LAUNCH.items() if key != "wall"}
        )
    return made


def test_home_follows_the_variable(tmp_path):
    assert home({"GLM2_ORCH_HOME": str(tmp_path)}) == tmp_path
    assert home({}).is_absolute()


def test_new_run_id_is_valid_and_sorts_by_time():
    early = new_run_id("finetune", datetime(2024, 1, 2, 3, 4, 5), "ffff")
    late = new_run_id("finetune", datetime(2024, 1, 2, 3, 4, 6), "0000")
    assert early == "finetune-20240102-030405-ffff"
    assert early < late
    check_run_id(early)


def test_resolve(store):
    assert store.resolve("latest").run_id == "eval-1"
    assert store.resolve("ev").run_id == "eval-1"
    assert store.resolve("finetune-1").run_id == "finetune-1"
    with pytest.raises(UsageError, match="fits 2 runs"):
        store.resolve("fine")
    with pytest.raises(UsageError, match="no run is called"):
        store.resolve("nope")


def test_resolve_without_runs(tmp_path):
    with pytest.raises(UsageError, match="there is no run"):
        RunStore(tmp_path).resolve("latest")


def test_a_run_id_is_used_once(store):
    with pytest.raises(UsageError, match="exists already"):
        store.create("eval-1")


def test_journal_survives_a_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, clock=lambda: 1.0).append("one", text="日志")
    with path.open("ab") as stream:
        stream.write(b'{"event": "tw')
    assert [event["event"] for event in read_events(path)] == ["one"]
    assert next(read_events(path))["text"] == "日志"
    assert path.stat().st_mode & 0o777 == 0o600


def test_last_events_reads_only_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in range(1000)))
    assert [line["step"] for line in last_events(path, limit=60)][-1] == 999
    assert len(last_events(path, limit=60)) < 10
    assert last_events(tmp_path / "absent") == []


def test_lease_is_exclusive_and_freed_by_death(tmp_path):
    path = tmp_path / "controller.lock"
    code = (
        "import sys; from pathlib import Path; from orchestrator.runs import lease;"
        "held = lease.acquire(Path(sys.argv[1]), 'test'); print('held', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        held = lease.holder(path)
        assert held is not None
        assert held["pid"] == other.pid
        with pytest.raises(Busy, match=f"process {other.pid}"):
            lease.acquire(path, "second")
        other.kill()
        other.wait()
    assert lease.holder(path) is None
    mine = lease.acquire(path, "third")
    assert lease.holder(path) == {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "purpose": "third",
        "epoch": 2,
    }
    newer = lease.acquire(path, "fourth", take_over=True)
    newer.raise_to(7)
    mine.release()
    held = lease.holder(path)
    assert held is not None
    assert (held["purpose"], held["epoch"]) == ("fourth", 7)
    with pytest.raises(Busy, match="fourth"):
        lease.acquire(path, "fifth")
    newer.release()
    assert lease.holder(path) is None
    assert lease.last_epoch(path) == 7
    mine.release()
    mine.release()


def test_the_holders_note_is_whole_at_every_moment(tmp_path, monkeypatch):
    """Who looks while it is written anew finds the old one, never an empty file."""
    path = tmp_path / "controller.lock"
    held = lease.acquire(path, "attach")
    found = []

    def watched(call):
        def called(*arguments):
            call(*arguments)
            found.append(lease.last_epoch(path))

        return called

    for name in ("ftruncate", "pwrite"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for epoch in (1000, 7000):
        held.raise_to(epoch)
    assert found == [1000, 7000]
    held.release()


def merged(controller=(), nodes=None, metrics=None, watcher=None):
    return merge_state("r", [LAUNCH, *controller], nodes or {}, {}, metrics or {}, watcher)


def test_state_before_anything_is_heard_is_unknown_not_zero():
    state = merged()
    assert state.status is RunStatus.PREPARING
    assert [rank.step for rank in state.ranks] == [None, None]
    assert state.unwatched


def test_state_of_a_success():
    code = {"event": "process_exited", "code": 0, "collateral": False}
    state = merged(
        [
            {"event": "running"},
            {"event": "end", "outcome": "succeeded", "exit_status": 0, "wall": 160.0},
        ],
        {
            "a": [
                {"event": "process_started", "name": "rank_0", "pid": 7},
                {**code, "name": "rank_0"},
                {"event": "process_exited", "name": "scheduler", "code": 143, "collateral": True},
                {"event": "finished", "outcome": "succeeded"},
            ],
            "b": [{**code, "name": "rank_1"}],
        },
        {"rank_0": [{"step": 3, "loss": 2.5}, {"phase": "done"}]},
    )
    assert state.status is RunStatus.SUCCEEDED
    assert state.status.is_terminal
    assert [rank.status for rank in state.ranks] == [ProcessStatus.SUCCEEDED] * 2
    assert (state.ranks[0].step, state.ranks[0].loss, state.ranks[0].phase) == (3, 2.5, "done")
    assert state.processes[0].status is ProcessStatus.STOPPED
    assert state.hosts[0].outcome == "succeeded"
    assert not state.unwatched


def test_ranks_of_a_host_that_was_lost_are_unknown_when_the_run_is_over():
    started = {"event": "process_started", "name": "rank_1", "pid": 7}
    end = {"event": "end", "outcome": "failed", "exit_status": 5, "wall": 160.0}
    assert merged([{"event": "running"}], {"b": [started]}).ranks[1].status.value == "running"
    state = merged([{"event": "running"}, end], {"b": [started]})
    assert state.ranks[1].status is ProcessStatus.UNKNOWN


def test_a_stop_after_the_end_changes_nothing():
    end = {"event": "end", "outcome": "succeeded", "exit_status": 0, "wall": 160.0}
    stop = {"event": "decision", "action": "stop", "rule": "stop-requested"}
    assert merged([{"event": "running"}, stop]).status is RunStatus.STOPPING
    assert merged([{"event": "running"}, end, stop]).status is RunStatus.SUCCEEDED


def test_read_state_of_an_empty_record(store):
    state = read_state(store.resolve("eval-1"))
    assert state.world_size == 2
    assert [host.name for host in state.hosts] == ["a", "b"]
