"""Following a run: what an earlier controller left behind, and trouble on our own disk."""

from __future__ import annotations

import json
import time
from typing import Any, Dict, Iterator, List, Optional

import pytest

from orchestrator.engine.follow import follow, in_order
from orchestrator.engine.launch import exit_status
from orchestrator.engine.reader import HostRun
from orchestrator.engine.recording import replay as replayed
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import Fenced
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.transport.base import Completed
from orchestrator.watching import reducer, watcher
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
    decided = [{"event": "decision", "action": "stop", "rule": "rank-failed"}]
    cause = replay(in_order([stop, failure], decided)).failure
    assert cause is not None
    assert (cause.host, cause.process, cause.exit_code) == ("a", "rank_0", 3)
    # Without such a decision the order of time holds: it was a request.
    assert replay(in_order([stop, failure], [])).failure is None
    # Of a clock that is known to be behind, the right time is known.
    late = reducer.NodeEvent("b", stop.event, ahead=-80.0)
    assert replay(in_order([late, failure], [])).failure == cause


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

    wants_logs = True

    def connection(self, host: str, problem: Optional[str]) -> None:
        if problem is not None:
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


def test_a_host_is_not_silent_because_the_controller_stood_still(tmp_path):
    """It was stopped for longer than a host may be silent; what was sent meanwhile is unread."""
    ahead = [0.0]
    transport = FakeTransport([])

    def stand_still() -> None:
        ahead[0] = 1000.0
        transport.lines[:] = [_finished()]

    host = HostRun(Supervisor(transport, "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    paths = RunPaths(tmp_path)
    ending = follow(
        *(paths, Journal(paths.journal), [host], Seen(on_problem=stand_still)),
        grace_s=1.0,
        clock=lambda: time.monotonic() + ahead[0],
    )
    assert (ending.outcome, ending.failure) == ("succeeded", None)


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


DUMP = """Thread 0x00007f01 (most recent call first):
  File "/lib/queue.py", line 171 in get

Current thread 0x00007f00 (most recent call first):
  File "/code/train.py", line {line} in {function}
  File "/code/main.py", line 3 in main
"""


class Standing(FakeTransport):
    """A host of three ranks that send metrics, then only beats, until the run is stopped."""

    def __init__(self, lines: List[bytes]) -> None:
        super().__init__(lines)
        self.asked: List[str] = []

    def run(self, argv: Any, **_: Any) -> Any:
        self.asked.append(argv[3])
        if argv[3] == "stacks":
            places = [("all_reduce", 7), ("all_reduce", 7), ("load_batch", 50)]
            stacks = [
                {
                    "name": f"rank_{rank}",
                    "rank": rank,
                    "pid": rank + 1,
                    "source": "faulthandler",
                    "text": DUMP.format(function=function, line=line),
                }
                for rank, (function, line) in enumerate(places)
            ]
            return Completed(0, json.dumps({"stacks": stacks}).encode() + b"\n", b"")
        self.lines[:] = [_finished().replace(b"succeeded", b"cancelled")]
        return Completed(0, b'{"clean":true}\n', b"")


def standing(tmp_path: Any, **rules: Any) -> Any:
    lines = [line.replace(b"rank_0", b"rank_%d" % rank) for rank in range(3) for line in TRAINED]
    transport = Standing([*lines, b'{"t":"beat","wall":1,"mono":1}\n'])
    names = ("scheduler", "rank_0", "rank_1", "rank_2")
    host = HostRun(Supervisor(transport, "python3", "/r"), names)  # type: ignore[arg-type]
    limits = TrainingLimits(hang=HangLimits(step_s=1.0))
    return transport, host, watcher.Rules(limits=limits, **rules)


def test_a_run_that_stands_still_is_stopped_and_the_odd_rank_named(tmp_path):
    transport, host, rules = standing(tmp_path)
    paths = RunPaths(tmp_path)
    journal = Journal(paths.journal)
    ending = follow(paths, journal, [host], Seen(), grace_s=1.0, rules=rules)
    assert (ending.outcome, ending.first_step, ending.last_step) == ("failed", 0, 8)
    assert ending.failure is not None
    assert (ending.failure.rule, ending.failure.rank, ending.failure.host) == ("hang", 2, "a")
    assert "rank 2 in load_batch (train.py:50) < main (main.py:3)" in ending.failure.sentence()
    assert exit_status(ending) == 7
    assert transport.asked == ["stacks", "stop"]
    decisions = [event for event in journal.events() if event["event"] == "decision"]
    assert [(one["action"], one["rule"]) for one in decisions] == [
        ("take-stacks", "hang"),
        ("stop", "hang"),
    ]
    assert decisions[1]["evidence"]["step"] == 8
    assert decisions[1]["evidence"]["differ"] == [2]
    assert "load_batch" in paths.stacks("rank_2").read_text()
    assert [(one.action, dict(one.evidence)) for one in replayed(paths)] == [
        (one["action"], one["evidence"]) for one in decisions
    ]


def test_a_loss_that_is_no_number_is_told_and_the_run_goes_on(tmp_path):
    lost = [b'{"step":%d,"loss":null,"overflow":false}' % step for step in range(1, 6)]
    told: List[str] = []
    beat = b'{"t":"beat","wall":1,"mono":1}\n'
    transport = FakeTransport([*_metrics(*lost), beat])
    seen = Observing(told, lambda: transport.lines.__setitem__(slice(None), [_finished()]))
    host = HostRun(Supervisor(transport, "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    journal = Journal(RunPaths(tmp_path).journal)
    ending = follow(RunPaths(tmp_path), journal, [host], seen, grace_s=1.0)
    assert ending.outcome == "succeeded"
    assert told == ["the loss of rank 0 is no number since step 1"]
    assert [event["action"] for event in journal.events()] == ["tell"]


def test_a_loss_that_is_no_number_stops_the_run_where_the_job_says_so(tmp_path):
    lost = [b'{"step":%d,"loss":"nan","overflow":false}' % step for step in range(1, 6)]
    transport = Standing([*_metrics(*lost), b'{"t":"beat","wall":1,"mono":1}\n'])
    host = HostRun(Supervisor(transport, "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    journal = Journal(RunPaths(tmp_path).journal)
    rules = watcher.Rules(stop_on_divergence=True)
    ending = follow(RunPaths(tmp_path), journal, [host], Seen(), grace_s=1.0, rules=rules)
    assert ending.failure is not None
    assert (ending.failure.rule, ending.failure.rank) == ("loss-nan", 0)
    assert exit_status(ending) == 6


class Observing(Seen):
    """Keeps the sentences of decisions; ``then`` is called with each."""

    def __init__(self, told: List[str], then: Any) -> None:
        super().__init__()
        self._told, self._then = told, then

    def decision(self, sentence: str) -> None:
        self._told.append(sentence)
        self._then()


def test_a_controller_that_was_taken_over_from_ends_without_an_ending(tmp_path):
    lines = [b'{"t":"beat","wall":1,"mono":1}\n', b'{"t":"fenced","epoch":2,"owner":"b"}\n']
    host = HostRun(Supervisor(FakeTransport(lines), "python3", "/r"), ("rank_0",))  # type: ignore[arg-type]
    journal = Journal(RunPaths(tmp_path).journal)
    with pytest.raises(Fenced, match="another controller has taken over the run: b"):
        follow(RunPaths(tmp_path), journal, [host], Seen(), grace_s=1.0)
    assert journal.events() == []


def test_at_take_over_what_was_received_before_counts(tmp_path):
    """A controller that comes back to a run that hangs gets no new metrics."""
    _, host, rules = standing(tmp_path)
    paths = RunPaths(tmp_path)
    for rank in range(3):
        file = paths.metrics(f"rank_{rank}")
        file.parent.mkdir(exist_ok=True)
        lines = [json.loads(line)["data"] for line in TRAINED]
        file.write_text("".join(lines))
    transport = Standing([b'{"t":"beat","wall":1,"mono":1}\n'])
    host = HostRun(Supervisor(transport, "python3", "/r"), host.processes)  # type: ignore[arg-type]
    ending = follow(paths, Journal(paths.journal), [host], Seen(), grace_s=1.0, rules=rules)
    assert ending.failure is not None
    assert "after step 8" in ending.failure.sentence()


def _finished() -> bytes:
    event = b'{"event":"finished","outcome":"succeeded"}'
    return b'{"t":"event","off":%d,"event":%s}\n{"t":"end"}\n' % (len(event) + 1, event)
