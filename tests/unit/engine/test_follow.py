"""Following a run: what an earlier controller left behind, and trouble on our own disk."""

from __future__ import annotations

import json
import time
from typing import Any, Dict, Iterator, List

import pytest

from orchestrator.engine.follow import HostRun, follow, in_order
from orchestrator.engine.launch import exit_status
from orchestrator.engine.pace import Pace
from orchestrator.engine.supervisor import Supervisor
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.transport.base import Completed
from orchestrator.watching import reducer
from orchestrator.watching.hang import HangLimits
from orchestrator.watching.training import TrainingLimits

FAILED = {"event": "process_exited", "name": "rank_0", "rank": 0, "code": 3, "collateral": False}


def replay(events: List[reducer.NodeEvent]) -> reducer.Watch:
    state = reducer.begin(["a", "b"], 0.0)
    for event in events:
        state, _ = reducer.reduce(state, event, 0.0)
    return state


def test_at_take_over_a_clock_that_is_behind_does_not_hide_the_cause():
    failure = reducer.NodeEvent("a", {**FAILED, "wall": 100.0})
    stop = reducer.NodeEvent("b", {"event": "stopping", "by": "stop (pid 7)", "wall": 40.0})
    decided = [{"event": "decision", "rule": "rank-failed"}]
    cause = replay(in_order([stop, failure], decided)).failure
    assert cause is not None
    assert (cause.host, cause.process, cause.exit_code) == ("a", "rank_0", 3)
    # Without such a decision the order of time holds: it was a request.
    assert replay(in_order([stop, failure], [])).failure is None


class FakeStream:
    exit_status = 0
    stderr = b""

    def __init__(self, lines: List[bytes]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines)

    def close(self) -> None:
        pass


class FakeTransport:
    """A host of one rank whose stream is the same at every attempt."""

    name = "a"

    def __init__(self, lines: List[bytes]) -> None:
        self.lines = lines

    def stream(self, argv: object) -> FakeStream:
        return FakeStream(self.lines)


class Seen:
    """Observer that keeps the problems of connections; ``on_problem`` is called with each."""

    def __init__(self, on_problem: Any = lambda: None) -> None:
        self.problems: List[str] = []
        self._on_problem = on_problem

    def connection(self, host: str, problem: str) -> None:
        self.problems.append(problem)
        self._on_problem()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


DATA = b'{"t":"data","file":"ranks/rank_0/stdout.log","off":0,"data":"hello\\n"}\n'


@pytest.fixture
def run(tmp_path):
    def start(lines: List[bytes], seen: Seen) -> Dict[str, Any]:
        transport = FakeTransport(lines)
        host = HostRun(Supervisor(transport, "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
        paths = RunPaths(tmp_path)
        journal = Journal(paths.journal)
        ending = follow(paths, journal, [host], seen, grace_s=1.0, clock=time.monotonic)
        return {"ending": ending, "paths": paths}

    return start


def test_a_file_here_that_cannot_be_written_does_not_end_the_job(run, tmp_path):
    (tmp_path / "logs").write_text("in the way")
    seen = Seen(on_problem=lambda: (tmp_path / "logs").unlink(missing_ok=True))
    done = run([DATA, _finished()], seen)
    assert "cannot keep what it sends" in seen.problems[0]
    assert done["ending"].outcome == "succeeded"
    assert len(seen.problems) == 1
    assert done["paths"].log("rank_0").read_bytes() == b"hello\n"


def test_a_frame_that_makes_no_sense_is_a_problem_of_the_connection(run):
    lines = [b'{"t":"data"}\n']
    seen = Seen(on_problem=lambda: lines.__setitem__(slice(None), [DATA, _finished()]))
    done = run(lines, seen)
    assert "makes no sense" in seen.problems[0]
    assert done["ending"].outcome == "succeeded"


def _metrics(*lines: bytes) -> List[bytes]:
    frames, offset = [], 0
    for line in lines:
        frame = {
            "t": "data",
            "file": "ranks/rank_0/metrics.jsonl",
            "off": offset,
            "data": line.decode() + "\n",
        }
        offset += len(line) + 1
        frames.append(json.dumps(frame).encode() + b"\n")
    return frames


TRAINED = _metrics(
    b'{"phase":"train","wall":1}', *(b'{"step":%d,"step_time_s":0.01}' % n for n in range(9))
)


def test_a_run_that_stands_still_is_stopped_and_the_decision_journaled(tmp_path):
    """The host sends metrics, then only beats, until the run is stopped there."""
    lines = [*TRAINED, b'{"t":"beat","wall":1,"mono":1}\n']
    stops: List[Any] = []

    class Host(FakeTransport):
        def run(self, argv: Any, **_: Any) -> Any:
            stops.append(argv)
            self.lines[:] = [_finished().replace(b"succeeded", b"cancelled")]
            return Completed(0, b'{"clean":true}\n', b"")

    host = HostRun(Supervisor(Host(lines), "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    paths = RunPaths(tmp_path)
    journal = Journal(paths.journal)
    limits = TrainingLimits(hang=HangLimits(step_s=1.0))
    ending = follow(paths, journal, [host], Seen(), grace_s=1.0, limits=limits)
    assert ending.outcome == "failed"
    assert ending.failure is not None
    assert ending.failure.rule == "hang"
    assert exit_status(ending) == 7
    assert len(stops) == 1
    decisions = [event for event in journal.events() if event["event"] == "decision"]
    assert [(one["action"], one["rule"]) for one in decisions] == [("stop", "hang")]
    assert decisions[0]["evidence"]["step"] == 8


def test_a_loss_that_is_no_number_is_told_and_the_run_goes_on(tmp_path):
    lost = [b'{"step":%d,"loss":null,"overflow":false}' % step for step in range(1, 6)]
    told: List[str] = []
    seen = Seen()
    seen.decision = told.append  # type: ignore[method-assign]
    transport = FakeTransport([*_metrics(*lost), _finished()])
    host = HostRun(Supervisor(transport, "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    journal = Journal(RunPaths(tmp_path).journal)
    ending = follow(RunPaths(tmp_path), journal, [host], seen, grace_s=1.0)
    assert ending.outcome == "succeeded"
    assert told == ["the loss of rank 0 is no number since step 1"]
    assert [event["action"] for event in journal.events()] == ["tell"]


def test_at_take_over_what_was_received_before_counts(tmp_path):
    """A controller that comes back to a run that hangs gets no new metrics."""
    paths = RunPaths(tmp_path)
    file = paths.metrics("rank_0")
    file.parent.mkdir()
    file.write_bytes(b'{"phase":"train","wall":1}\n{"step":1,"step_time_s":0.1,"wall":2}\n')
    now = [100.0]
    pace = Pace(paths, {"a": ("scheduler", "rank_0")}, TrainingLimits(), lambda: now[0])
    assert pace.tick() == (None, [])
    now[0] += 601.0
    standstill, others = pace.tick()
    assert standstill is not None
    assert "after step 1" in standstill.sentence
    assert others == []


def _finished() -> bytes:
    event = b'{"event":"finished","outcome":"succeeded"}'
    return b'{"t":"event","off":%d,"event":%s}\n{"t":"end"}\n' % (len(event) + 1, event)
