"""Events so far -> the snapshot that ``status`` prints."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pytest

from orchestrator.node import snapshot
from orchestrator.node.spec import ProcessSpec, Spec

SPEC = Spec(
    run_id="r1",
    host="node0",
    workdir="/data",
    grace_s=1.0,
    heartbeat_s=1.0,
    linger_s=0.0,
    leases=(),
    processes=(ProcessSpec("scheduler", None, ("a",)), ProcessSpec("rank_8", 8, ("b",))),
)
FIRST = {"name": "rank_8", "code": 1}
STORY: List[Dict[str, Any]] = [
    {"event": "armed", "pid": 5, "start_ticks": 1, "boot_id": "b"},
    {"event": "started"},
    {"event": "process_started", "name": "scheduler", "rank": None, "pid": 6, "start_ticks": 2},
    {"event": "process_started", "name": "rank_8", "rank": 8, "pid": 7, "start_ticks": 2},
    {"event": "unreadable", "line": "?"},
    {
        "event": "process_exited",
        "name": "rank_8",
        "rank": 8,
        "code": 1,
        "signal": None,
        "collateral": False,
    },
    {"event": "stopping", "reason": "rank_8 ended with exit status 1", "by": "supervisor"},
    {"event": "stopping", "reason": "enough", "by": "stop (pid 9)"},
    {"event": "killed", "name": "scheduler", "pid": 6, "command": "a", "signal": "SIGTERM"},
    {"event": "finished", "outcome": "failed", "first_failure": FIRST},
]


def at(
    count: int, *, alive: bool = True, heartbeat: Optional[Dict[str, Any]] = None, pid: int = 0
) -> Dict[str, Any]:
    """The snapshot after ``count`` events; ``pid`` is the only process that lives."""
    return snapshot.reduce(SPEC, STORY[:count], heartbeat, alive, lambda p, ticks: p == pid)


@pytest.mark.parametrize(
    ("count", "alive", "state", "processes"),
    [
        (0, False, "absent", ["waiting", "waiting"]),
        (1, True, "armed", ["waiting", "waiting"]),
        (1, False, "lost", ["waiting", "waiting"]),
        (2, True, "running", ["waiting", "waiting"]),
        (4, True, "running", ["running", "gone"]),
        (4, False, "lost", ["running", "gone"]),
        (6, True, "running", ["running", "exited"]),
        (9, False, "lost", ["running", "exited"]),
        (10, True, "finished", ["running", "exited"]),
        (10, False, "finished", ["running", "exited"]),
    ],
)
def test_states(count: int, alive: bool, state: str, processes: List[str]) -> None:
    found = at(count, alive=alive, pid=6)
    assert found["state"] == state
    assert found["supervisor_alive"] is alive
    assert [process["state"] for process in found["processes"]] == processes
    assert [process["name"] for process in found["processes"]] == ["scheduler", "rank_8"]


def test_the_end() -> None:
    found = at(10, alive=False)
    assert (found["outcome"], found["first_failure"]) == ("failed", FIRST)
    assert found["stopping"] == "rank_8 ended with exit status 1"
    assert found["processes"][1] == {
        "name": "rank_8",
        "rank": 8,
        "state": "exited",
        "pid": 7,
        "start_ticks": 2,
        "code": 1,
        "signal": None,
        "collateral": False,
    }


def test_the_end_that_only_the_heartbeat_could_tell() -> None:
    """The disk was too full for the journal's last line."""
    found = at(9, alive=False, heartbeat={"outcome": "failed"})
    assert (found["state"], found["outcome"]) == ("finished", "failed")


def test_without_a_specification_the_journal_names_the_processes() -> None:
    found = snapshot.reduce(None, STORY, None, False, lambda pid, ticks: False)
    assert found["run_id"] is None
    assert [(p["name"], p["rank"]) for p in found["processes"]] == [
        ("scheduler", None),
        ("rank_8", 8),
    ]
