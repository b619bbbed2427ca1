"""``reduce(state, event, now) -> (state, actions)``: every decision about a running job.

Rules, each journaled with its evidence when it fires:

``rank-failed``      a rank ended badly by itself: stop all other hosts at once (fail fast).
``supervisor-lost``  a host's supervisor vanished without an ending: stop the others.
``host-silent``      nothing was heard of a host for ``silence_s``: unreachable is not dead, so
                     this long is waited before the run is given up; then stop the others.
``hang``             no rank gets on for longer than its own pace allows (see ``training``).
``stop-requested``   an operator asked for it.

When all hosts have ended (or are given up) the run is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union


@dataclass(frozen=True)
class Failure:
    """The first failure of a run: where, what, when (the host's Unix time)."""

    rule: str
    host: str
    process: Optional[str] = None
    rank: Optional[int] = None
    exit_code: Optional[int] = None
    wall: Optional[float] = None
    detail: str = ""

    def sentence(self) -> str:
        """One sentence for an operator."""
        if self.rule == "hang":
            return self.detail
        if self.rule == "rank-failed":
            return f"{self.process} on {self.host} failed first, {describe_exit(self.exit_code)}"
        if self.rule == "supervisor-lost":
            return f"the supervisor on {self.host} vanished without an ending"
        return f"{self.host} was not heard of for too long"


@dataclass(frozen=True)
class HostView:
    """What is known of one host: ``phase`` is running, finished, lost or given-up."""

    last_heard: float
    phase: str = "running"
    outcome: Optional[str] = None

    @property
    def ended(self) -> bool:
        return self.phase != "running"


@dataclass(frozen=True)
class Watch:
    """State of the watcher. ``stopping`` is the rule that made us stop, if any."""

    hosts: Mapping[str, HostView]
    silence_s: float = 60.0
    stopping: Optional[str] = None
    failure: Optional[Failure] = None
    over: bool = False


@dataclass(frozen=True)
class Heard:
    """A sign of life of a host."""

    host: str


@dataclass(frozen=True)
class NodeEvent:
    """One line of a host's journal."""

    host: str
    event: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SupervisorLost:
    """The host answers, but the run's supervisor is gone without having written an ending."""

    host: str


@dataclass(frozen=True)
class Standstill:
    """No rank gets on: a sentence that says so, and what shows it. ``rank`` of ``host`` is
    behind the others, where one is."""

    sentence: str
    evidence: Mapping[str, Any]
    host: str = ""
    rank: Optional[int] = None


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


WatchEvent = Union[Heard, NodeEvent, SupervisorLost, Standstill, Tick]


@dataclass(frozen=True)
class StopHost:
    """End the run on this host (TERM, grace, KILL)."""

    host: str
    reason: str


@dataclass(frozen=True)
class Decide:
    """A decision to be journaled: the rule and what made it fire."""

    rule: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class Finish:
    """The run is over: ``succeeded``, ``failed`` or ``cancelled``."""

    outcome: str
    failure: Optional[Failure]


Action = Union[StopHost, Decide, Finish]
Result = Tuple[Watch, List[Action]]


def begin(hosts: List[str], now: float, *, silence_s: float = 60.0) -> Watch:
    """The state of a watcher that starts at ``now`` (any monotonic seconds)."""
    return Watch({host: HostView(last_heard=now) for host in hosts}, silence_s=silence_s)


def reduce(state: Watch, event: WatchEvent, now: float) -> Result:
    """The next state, and what has to be done. Pure; ``now`` is in monotonic seconds."""
    if state.over:
        return state, []
    actions: List[Action] = []
    if isinstance(event, Tick):
        state, actions = _give_up_silent(state, now)
    elif isinstance(event, Standstill):
        failure = Failure("hang", event.host, rank=event.rank, detail=event.sentence)
        state, actions = _fail(state, failure, event.evidence)
    elif event.host in state.hosts:
        state = _with_host(state, event.host, last_heard=now)
        if isinstance(event, NodeEvent):
            state, actions = _node_event(state, event)
        elif isinstance(event, SupervisorLost) and not state.hosts[event.host].ended:
            state = _with_host(state, event.host, phase="lost")
            state, actions = _fail(state, Failure("supervisor-lost", event.host), {})
    if all(view.ended for view in state.hosts.values()):
        state = replace(state, over=True)
        actions.append(Finish(_outcome(state), state.failure))
    return state, actions


def describe_exit(code: Optional[int]) -> str:
    """``exit status 1``, or the signal's name: ``killed by SIGKILL (137)``."""
    if code is None:
        return "exit status unknown"
    if code > 128:
        import signal

        try:
            return f"killed by {signal.Signals(code - 128).name} ({code})"
        except ValueError:
            pass
    return f"exit status {code}"


def _node_event(state: Watch, event: NodeEvent) -> Result:
    data, host = event.event, event.host
    kind = data.get("event")
    if kind == "process_exited" and not data.get("collateral") and data.get("code") != 0:
        failure = Failure(
            "rank-failed",
            host,
            process=data.get("name"),
            rank=data.get("rank"),
            exit_code=data.get("code"),
            wall=data.get("wall"),
        )
        return _fail(state, failure, {"event": dict(data)})
    if kind == "stopping" and data.get("by") != "supervisor" and state.stopping is None:
        decision = Decide("stop-requested", {"host": host, "event": dict(data)})
        state = replace(state, stopping="stop-requested")
        return state, [decision, *_stop_others(state, host, "stop requested on another host")]
    if kind == "finished":
        state = _with_host(state, host, phase="finished", outcome=data.get("outcome"))
    return state, []


def _give_up_silent(state: Watch, now: float) -> Result:
    actions: List[Action] = []
    for host, view in state.hosts.items():
        if view.ended or now - view.last_heard < state.silence_s:
            continue
        state = _with_host(state, host, phase="given-up")
        evidence = {"silent_s": round(now - view.last_heard, 1), "limit_s": state.silence_s}
        state, more = _fail(state, Failure("host-silent", host), evidence)
        actions += more
    return state, actions


def _fail(state: Watch, failure: Failure, evidence: Mapping[str, Any]) -> Result:
    """The first failure stops everything else; later ones are consequences."""
    if state.failure is not None or state.stopping is not None:
        earlier = state.failure
        if (
            earlier is not None
            and failure.wall is not None
            and earlier.wall is not None
            and failure.wall < earlier.wall
        ):
            state = replace(state, failure=failure)
        return state, []
    state = replace(state, failure=failure, stopping=failure.rule)
    decision = Decide(failure.rule, {"host": failure.host, **evidence})
    # A host where something failed ends by itself; one that hangs does not.
    origin = "" if failure.rule == "hang" else failure.host
    return state, [decision, *_stop_others(state, origin, failure.sentence())]


def _stop_others(state: Watch, origin: str, reason: str) -> List[Action]:
    return [
        StopHost(host, reason)
        for host, view in state.hosts.items()
        if host != origin and not view.ended
    ]


def _outcome(state: Watch) -> str:
    outcomes = {view.outcome for view in state.hosts.values()}
    if state.failure is not None or outcomes - {"succeeded", "cancelled"}:
        return "failed"
    return "cancelled" if "cancelled" in outcomes else "succeeded"


def _with_host(state: Watch, host: str, **changes: Any) -> Watch:
    hosts: Dict[str, HostView] = dict(state.hosts)
    hosts[host] = replace(hosts[host], **changes)
    return replace(state, hosts=hosts)
