"""``reduce(state, event, now) -> (state, actions)``: every decision about a running job.

Rules, each journaled with its evidence when it fires:

``rank-failed``      a rank ended badly by itself: stop all other hosts at once (fail fast).
``supervisor-lost``  a host's supervisor vanished without an ending: stop the others.
``supervisor-failed``  a supervisor ended its ranks because of a mistake of its own, or because
                     nobody started them in time: stop the others.
``host-silent``      nothing was heard of a host for ``silence_s``: unreachable is not dead, so
                     this long is waited before the run is given up; then stop the others.
``all-silent``       nothing is heard of any of several hosts: more likely our own network. That
                     is waited out ten times as long before ``host-silent`` is decided.
``stop-requested``   an operator asked for it. What failed before that is the first cause all the
                     same, whichever of both is heard of first; what fails later is a consequence.

What the metrics give away (``hang``, ``loss-nan``, ``scale-collapse``: see ``training``) comes in
as ``Judged``, from ``watcher``.

When all hosts have ended (or are given up) the run is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from orchestrator.watching.signs import Signs, first_signs

LOST = ("host-silent", "supervisor-lost", "supervisor-failed")
"""Rules by which a host is to blame, whatever the logs of its ranks say."""
STOP_REQUESTED = "stop-requested"
STOP_REASON = "stopped by request"
"""What hosts are told, and journal, when an operator ends the run; else it is a sentence."""
_ALONE_TIMES = 10
"""How much longer is waited where no host at all is heard."""


@dataclass(frozen=True)
class Failure:
    """The first failure of a run: where, what, when (Unix time, by our clock)."""

    rule: str
    host: str
    process: Optional[str] = None
    rank: Optional[int] = None
    exit_code: Optional[int] = None
    wall: Optional[float] = None
    detail: str = ""
    """The sentence, where it does not follow from the rest."""

    def sentence(self) -> str:
        """One sentence for an operator."""
        if self.detail:
            return self.detail
        if self.rule == "rank-failed":
            return f"{self.process} on {self.host} failed first, {describe_exit(self.exit_code)}"
        if self.rule == "supervisor-lost":
            return f"the supervisor on {self.host} vanished without an ending"
        return f"{self.host} was not heard of for too long"


@dataclass(frozen=True)
class HostView:
    """What is known of one host: ``phase`` is running, finished, lost or given-up."""

    phase: str = "running"
    outcome: Optional[str] = None

    @property
    def ended(self) -> bool:
        return self.phase != "running"


@dataclass(frozen=True)
class Watch:
    """State of the watcher. ``stopping`` is the rule that made us stop, if any."""

    hosts: Mapping[str, HostView]
    signs: Signs
    silence_s: float = 60.0
    stopping: Optional[str] = None
    requested: Optional[float] = None
    """When an operator's stop came to the first host (Unix time, by our clock)."""
    failure: Optional[Failure] = None
    over: bool = False
    alone: bool = False
    """Nothing is heard of any host, and that was told."""


@dataclass(frozen=True)
class Heard:
    """Signs of life of hosts."""

    hosts: Tuple[str, ...]


@dataclass(frozen=True)
class NodeEvent:
    """One line of a host's journal. ``ahead``: by how much its clock is ahead of ours (s)."""

    host: str
    event: Mapping[str, Any] = field(default_factory=dict)
    ahead: float = 0.0

    @property
    def wall(self) -> Optional[float]:
        """When it happened, by our clock (Unix time)."""
        wall = self.event.get("wall")
        if isinstance(wall, bool) or not isinstance(wall, (int, float)):
            return None
        return wall - self.ahead


@dataclass(frozen=True)
class SupervisorLost:
    """The host answers, but the run's supervisor is gone without having written an ending."""

    host: str


@dataclass(frozen=True)
class Judged:
    """The metrics made ``rule`` fire, and the run is to be stopped: a sentence that says why, and
    what shows it. ``rank`` of ``host`` is the one to look at, where one is known."""

    rule: str
    sentence: str
    evidence: Mapping[str, Any]
    host: str = ""
    rank: Optional[int] = None


@dataclass(frozen=True)
class Tick:
    """Time has passed. ``thorough``: enough of it to compare all ranks again."""

    thorough: bool = False


WatchEvent = Union[Heard, NodeEvent, SupervisorLost, Judged, Tick]


@dataclass(frozen=True)
class StopHost:
    """End the run on this host (TERM, grace, KILL)."""

    host: str
    reason: str


@dataclass(frozen=True)
class Decide:
    """A decision to be journaled: the rule, what made it fire, and what is done about it:
    ``stop`` the run, ``take-stacks``, ``wait``, or only ``tell``."""

    rule: str
    evidence: Mapping[str, Any]
    action: str = "stop"
    sentence: str = ""


@dataclass(frozen=True)
class Finish:
    """The run is over: ``succeeded``, ``failed`` or ``cancelled``."""

    outcome: str
    failure: Optional[Failure]


Action = Union[StopHost, Decide, Finish]
Result = Tuple[Watch, List[Action]]


def begin(hosts: List[str], now: float, *, silence_s: float = 60.0) -> Watch:
    """The state of a watcher that starts at ``now`` (any monotonic seconds)."""
    views = {host: HostView() for host in hosts}
    return Watch(views, first_signs(hosts, now), silence_s=silence_s)


def reduce(state: Watch, event: WatchEvent, now: float) -> Result:
    """The next state, and what has to be done. Pure; ``now`` is in monotonic seconds."""
    if state.over:
        return state, []
    actions: List[Action] = []
    if isinstance(event, Tick):
        return _give_up_silent(state, now)
    if isinstance(event, Heard):
        return replace(state, signs=state.signs.add(event.hosts, now), alone=False), []
    if isinstance(event, Judged):
        failure = Failure(event.rule, event.host, rank=event.rank, detail=event.sentence)
        return _fail(state, failure, event.evidence, ending="")
    if event.host not in state.hosts:
        return state, []
    state = replace(state, signs=state.signs.add((event.host,), now), alone=False)
    if isinstance(event, NodeEvent):
        state, actions = _node_event(state, event)
    elif not state.hosts[event.host].ended:
        state = _with_host(state, event.host, phase="lost")
        state, actions = _fail(state, Failure("supervisor-lost", event.host), {})
    return _look_for_end(state, actions)


def running_hosts(state: Watch) -> List[str]:
    """Hosts that have not ended and were not given up."""
    return [host for host, view in state.hosts.items() if not view.ended]


def given_up(state: Watch) -> List[str]:
    """Hosts that were silent for too long."""
    return [host for host, view in state.hosts.items() if view.phase == "given-up"]


def _look_for_end(state: Watch, actions: List[Action]) -> Result:
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
            wall=event.wall,
        )
        return _fail(state, failure, {"event": dict(data)})
    if kind == "stopping" and data.get("by") != "supervisor":
        return _requested(state, event)
    if kind == "stopping" and state.stopping is None:
        sentence = f"the supervisor on {host} ended the run: {data.get('reason')}"
        failure = Failure("supervisor-failed", host, wall=event.wall, detail=sentence)
        return _fail(state, failure, {"event": dict(data), "sentence": sentence})
    if kind == "finished":
        state = _with_host(state, host, phase="finished", outcome=data.get("outcome"))
    return state, []


def _requested(state: Watch, event: NodeEvent) -> Result:
    """A host was asked to stop: by an operator, unless it was us."""
    data, host = event.event, event.host
    actions: List[Action] = []
    if state.stopping is None:
        sentence = f"stopping the run: a stop was requested on {host}"
        actions.append(
            Decide(STOP_REQUESTED, {"host": host, "event": dict(data)}, "stop", sentence)
        )
        actions += _stop_others(state, host, "stop requested on another host")
    elif state.stopping != STOP_REQUESTED and data.get("reason") != STOP_REASON:
        return state, []
    walls = [wall for wall in (state.requested, event.wall) if wall is not None]
    state = replace(state, requested=min(walls, default=None))
    if state.failure is not None and _follows_request(state, state.failure):
        state = replace(state, failure=None)
    if state.failure is None:
        state = replace(state, stopping=STOP_REQUESTED)
    return state, actions


def _follows_request(state: Watch, failure: Failure) -> bool:
    """Whether it failed when an operator had stopped the run already."""
    failed, asked = failure.wall, state.requested
    return failed is not None and asked is not None and failed >= asked


def _give_up_silent(state: Watch, now: float) -> Result:
    if now - state.signs.oldest < state.silence_s:
        return state, []
    heard, running = state.signs.last(), running_hosts(state)
    silent = [host for host in running if now - heard[host] >= state.silence_s]
    actions: List[Action] = []
    if len(running) > 1 and silent == running:
        limit = _ALONE_TIMES * state.silence_s
        silent = [host for host in silent if now - heard[host] >= limit]
        if not state.alone:
            state = replace(state, alone=True)
            actions.append(_told_alone(state, running, limit))
    for host in silent:
        state = _with_host(state, host, phase="given-up")
    for host in silent:
        evidence = {"silent_s": round(now - heard[host], 1), "limit_s": state.silence_s}
        state, more = _fail(state, Failure("host-silent", host), evidence)
        actions += more
    return _look_for_end(state, actions) if silent else (state, actions)


def _told_alone(state: Watch, hosts: List[str], limit: float) -> Decide:
    sentence = (
        f"nothing is heard of any of {len(hosts)} hosts for {state.silence_s:g} s: more likely "
        f"this machine's network than theirs; waiting up to {limit:g} s"
    )
    evidence = {"hosts": hosts, "silent_s": state.silence_s, "limit_s": limit}
    return Decide("all-silent", evidence, "wait", sentence)


def _fail(
    state: Watch, failure: Failure, evidence: Mapping[str, Any], ending: Optional[str] = None
) -> Result:
    """The first failure stops everything else; later ones are consequences. ``ending`` is the
    host that ends by itself: by default the one where something failed."""
    if state.stopping is not None:
        return (replace(state, failure=failure) if _came_first(state, failure) else state), []
    state = replace(state, failure=failure, stopping=failure.rule)
    sentence = f"stopping the run: {failure.sentence()}"
    decision = Decide(failure.rule, {"host": failure.host, **evidence}, sentence=sentence)
    origin = failure.host if ending is None else ending
    return state, [decision, *_stop_others(state, origin, failure.sentence())]


def _came_first(state: Watch, failure: Failure) -> bool:
    """Whether a failure that is heard of while the run ends is why it ends, nevertheless."""
    if state.failure is None and failure.rule == "host-silent":
        return True  # not because of the request that there was
    known = state.requested if state.failure is None else state.failure.wall
    return failure.wall is not None and known is not None and failure.wall < known


def _stop_others(state: Watch, origin: str, reason: str) -> List[Action]:
    return [
        StopHost(host, reason)
        for host, view in state.hosts.items()
        if host != origin and not view.ended
    ]


def _outcome(state: Watch) -> str:
    outcomes = {view.outcome for view in state.hosts.values()}
    if state.failure is not None:
        return "failed"
    if outcomes <= {"succeeded"}:
        return "succeeded"
    asked = state.stopping == STOP_REQUESTED
    return "cancelled" if asked or outcomes <= {"succeeded", "cancelled"} else "failed"


def _with_host(state: Watch, host: str, **changes: Any) -> Watch:
    hosts: Dict[str, HostView] = dict(state.hosts)
    hosts[host] = replace(hosts[host], **changes)
    return replace(state, hosts=hosts)
