"""What is known of a run: a pure merge of the controller's journal and the hosts' journals.

It tolerates holes. Unreachable is not dead, unknown is not zero, and a rank that we ended
ourselves is collateral, not a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from orchestrator.runs.journal import last_events, read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.lease import holder

Event = Mapping[str, Any]


class RunStatus(str, Enum):
    """Where a run is in its life."""

    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)


class ProcessStatus(str, Enum):
    """Where one process is; ``stopped`` is one that we ended: never the cause of a failure.
    ``unknown``: the run is over, and it was not heard how this one ended, if it did."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ProcessState:
    """One rank or service. ``exit_code`` is 128 + number for a signal."""

    name: str
    host: str
    rank: Optional[int]
    status: ProcessStatus = ProcessStatus.WAITING
    pid: Optional[int] = None
    exit_code: Optional[int] = None
    phase: Optional[str] = None
    step: Optional[int] = None
    steps: Optional[int] = None
    loss: Optional[float] = None
    tokens_per_s_per_p: Optional[float] = None
    step_time_s: Optional[float] = None
    result: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class HostState:
    """One host: the last state the controller saw, and when it was last heard (Unix seconds)."""

    name: str
    state: str = "waiting"
    heard: Optional[float] = None
    outcome: Optional[str] = None
    detail: str = ""


@dataclass(frozen=True)
class RunState:
    """The whole picture that ``status`` shows."""

    run_id: str
    status: RunStatus
    cluster: str = ""
    mode: str = ""
    recipe: str = ""
    world_size: int = 0
    created: Optional[float] = None
    ended: Optional[float] = None
    exit_status: Optional[int] = None
    cause: Optional[Mapping[str, Any]] = None
    controller: Optional[Mapping[str, Any]] = None
    """Process that watches the run now; None when nobody does."""
    spread: Optional[Mapping[str, Any]] = None
    """How far apart the hosts were started (``start-spread`` of the journal)."""
    left: Tuple[Mapping[str, Any], ...] = ()
    """What the ending found left on hosts, or could not ask."""
    certified: Optional[int] = None
    """How many hosts had nothing left at the ending; None: not looked for."""
    hosts: Tuple[HostState, ...] = ()
    processes: Tuple[ProcessState, ...] = ()

    @property
    def ranks(self) -> Tuple[ProcessState, ...]:
        """The ranks in their order, without services."""
        ranks = [process for process in self.processes if process.rank is not None]
        return tuple(sorted(ranks, key=lambda process: process.rank or 0))

    @property
    def unwatched(self) -> bool:
        """The run is not over as far as is known, and no controller is alive."""
        return not self.status.is_terminal and self.controller is None


def read_state(paths: RunPaths) -> RunState:
    """The state of a run from the files on the controller; asks no host."""
    controller = list(read_events(paths.journal))
    launched = _named(controller, "launch")[-1:]
    names = [host["name"] for event in launched for host in event["hosts"]]
    node_events = {name: list(read_events(paths.host_journal(name))) for name in names}
    beats = {name: _last(last_events(paths.host_beat(name))) for name in names}
    processes = [
        process["name"]
        for event in launched
        for host in event["hosts"]
        for process in host["processes"]
    ]
    metrics = {name: last_events(paths.metrics(name)) for name in processes}
    return merge_state(paths.run_id, controller, node_events, beats, metrics, holder(paths.lock))


def merge_state(
    run_id: str,
    controller: Iterable[Event],
    node_events: Mapping[str, Iterable[Event]],
    beats: Mapping[str, Optional[Event]],
    metrics: Mapping[str, Iterable[Event]],
    watcher: Optional[Mapping[str, Any]],
) -> RunState:
    """Pure merge of the controller's events with each host's events, last beat and metrics."""
    hosts: Dict[str, Dict[str, Any]] = {}
    processes: Dict[str, Dict[str, Any]] = {}
    run: Dict[str, Any] = {"status": RunStatus.PREPARING}
    for event in controller:
        _apply_controller(event, run, hosts, processes)
    for name, events in node_events.items():
        for event in events:
            _apply_node(name, event, hosts, processes)
    for name, beat in beats.items():
        if beat is not None and name in hosts:
            wall = beat.get("wall")
            hosts[name]["heard"] = wall if _is(wall, (int, float)) else None
    for name, lines in metrics.items():
        if name in processes:
            for line in lines:
                _apply_metrics(line, processes[name])
    if run["status"].is_terminal:
        for process in processes.values():
            if process.get("status") is ProcessStatus.RUNNING:
                process["status"] = ProcessStatus.UNKNOWN
    return RunState(
        run_id=run_id,
        controller=watcher,
        hosts=tuple(HostState(**fields) for fields in hosts.values()),
        processes=tuple(ProcessState(**fields) for fields in processes.values()),
        **run,
    )


def _apply_controller(
    event: Event,
    run: Dict[str, Any],
    hosts: Dict[str, Dict[str, Any]],
    processes: Dict[str, Dict[str, Any]],
) -> None:
    kind = event.get("event")
    if kind == "launch":
        # A second one: the first was undone, and other hosts were chosen.
        hosts.clear()
        processes.clear()
        run.update(
            cluster=event["cluster"],
            mode=event["mode"],
            recipe=event["recipe"],
            world_size=event["world_size"],
            created=event["wall"],
        )
        for host in event["hosts"]:
            hosts[host["name"]] = {"name": host["name"]}
            for process in host["processes"]:
                processes[process["name"]] = {**process, "host": host["name"]}
    elif kind == "host" and event.get("host") in hosts:
        hosts[event["host"]].update(state=event["state"], detail=event.get("detail", ""))
    elif kind == "start-spread":
        run["spread"] = {key: value for key, value in event.items() if key not in ("event", "wall")}
    elif kind == "running":
        run["status"] = RunStatus.RUNNING
    elif kind == "decision" and event.get("action") == "stop" and not run["status"].is_terminal:
        run["status"] = RunStatus.STOPPING
    elif kind == "end":
        run.update(
            status=RunStatus(event["outcome"]),
            ended=event["wall"],
            exit_status=event["exit_status"],
            cause=event.get("cause"),
        )
        if "left" in event:
            run.update(left=tuple(event["left"]), certified=len(hosts) - len(event["left"]))


def _apply_node(
    name: str, event: Event, hosts: Dict[str, Dict[str, Any]], processes: Dict[str, Dict[str, Any]]
) -> None:
    kind = event.get("event")
    process = processes.get(str(event.get("name")))
    if kind == "process_started" and process is not None:
        pid = event.get("pid")
        process.update(status=ProcessStatus.RUNNING, pid=pid if _is(pid, int) else None)
    elif kind == "process_exited" and process is not None:
        code = event.get("code")
        process.update(status=_exit_status(event), exit_code=code if _is(code, int) else None)
    elif kind == "finished" and name in hosts:
        hosts[name].update(state="finished", outcome=event.get("outcome"))


def _exit_status(event: Event) -> ProcessStatus:
    if event.get("collateral"):
        return ProcessStatus.STOPPED
    return ProcessStatus.SUCCEEDED if event.get("code") == 0 else ProcessStatus.FAILED


def _apply_metrics(line: Event, process: Dict[str, Any]) -> None:
    for key, kind in _METRICS.items():
        if key in line and (line[key] is None or _is(line[key], kind)):
            process[key] = line[key]


_Kind = Union[type, Tuple[type, ...]]
_METRICS: Mapping[str, _Kind] = {
    "phase": str,
    "step": int,
    "steps": int,
    "loss": (int, float),
    "tokens_per_s_per_p": (int, float),
    "step_time_s": (int, float),
    "result": dict,
}


def _is(value: object, kind: _Kind) -> bool:
    """Whether what a worker or host wrote is what it should be; what is not counts as unsaid."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, int) or abs(value) < 2**63


def _named(events: Iterable[Event], kind: str) -> List[Event]:
    return [event for event in events if event.get("event") == kind]


def _last(events: List[Dict[str, Any]]) -> Optional[Event]:
    return events[-1] if events else None
