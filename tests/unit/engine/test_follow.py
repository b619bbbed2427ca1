"""Following a run: what an earlier controller left behind, and trouble on our own disk."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, List

import pytest

from orchestrator.engine.follow import HostRun, follow, in_order
from orchestrator.engine.supervisor import Supervisor
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import reducer

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


def _finished() -> bytes:
    event = b'{"event":"finished","outcome":"succeeded"}'
    return b'{"t":"event","off":%d,"event":%s}\n{"t":"end"}\n' % (len(event) + 1, event)
