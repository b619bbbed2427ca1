"""The whole watcher of a run: ``reduce(state, event, now) -> (state, actions)``. Pure.

It joins what the hosts tell (``reducer``) with what the metrics give away (``training``), by the
rules of the job: which of the latter stop the run, and which are only told.

On a hang the stacks of all ranks are taken before the run is stopped: the ranks that stand
elsewhere than the others are named. A run that gets on in the meantime is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Tuple, Union

from orchestrator.watching import reducer, stacks, training
from orchestrator.watching.reducer import Decide, Finish, StopHost, Tick
from orchestrator.watching.stacks import Stack

_SHOWN_PLACES = 2
UNHEARD_S = 5.0
"""After so long without a sign of life of some host, a standstill is not called a hang."""


@dataclass(frozen=True)
class Rules:
    """What the job says about watching. Times in seconds."""

    silence_s: float = 60.0
    """How long a host may be silent before it is given up."""
    stop_on_hang: bool = True
    stop_on_divergence: bool = False
    stacks_s: float = 20.0
    """How long is waited for the stacks of all ranks."""
    limits: training.TrainingLimits = field(default_factory=training.TrainingLimits)


@dataclass(frozen=True)
class Taking:
    """Stacks that are being taken because of a hang."""

    hang: Decide
    until: float
    missing: FrozenSet[str]
    found: Tuple[Stack, ...] = ()


@dataclass(frozen=True)
class Watcher:
    """State of the watcher."""

    hosts: reducer.Watch
    training: training.Training
    rules: Rules
    taking: Optional[Taking] = None
    first_steps: Mapping[int, int] = field(default_factory=dict)
    last_steps: Mapping[int, int] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.hosts.over


@dataclass(frozen=True)
class Metrics:
    """Ranks wrote lines of metrics: (rank, line)."""

    lines: Tuple[Tuple[int, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class StacksTaken:
    """The stacks of a host's ranks; none where it could not be asked."""

    host: str
    stacks: Tuple[Stack, ...]


@dataclass(frozen=True)
class TakeStacks:
    """Ask this host where its ranks stand."""

    host: str


Event = Union[reducer.WatchEvent, Metrics, StacksTaken]
Action = Union[StopHost, Decide, Finish, TakeStacks]
Result = Tuple[Watcher, List[Action]]


def begin(
    hosts: Iterable[str],
    places: Iterable[training.Place],
    rules: Rules,
    now: float,
    earlier: Iterable[Tuple[int, Mapping[str, Any]]] = (),
) -> Result:
    """The state when all ranks were just started, or are taken over: ``earlier`` are the lines of
    metrics that an earlier controller received, which will not be sent again."""
    state = Watcher(
        reducer.begin(list(hosts), now, silence_s=rules.silence_s),
        training.begin_training(places, now, rules.limits),
        rules,
    )
    return reduce(state, Metrics(tuple(earlier)), now)


def reduce(state: Watcher, event: Event, now: float) -> Result:
    """The next state, and what has to be done; ``now`` is in monotonic seconds."""
    if state.over:
        return state, []
    if isinstance(event, Metrics):
        return _metrics(state, event, now)
    if isinstance(event, StacksTaken):
        return _stacks_taken(state, event)
    if isinstance(event, reducer.NodeEvent) and event.event.get("event") == "process_exited":
        rank = event.event.get("rank")
        if isinstance(rank, int):
            state = replace(state, training=training.on_exit(state.training, rank))
    state, actions = _hosts(state, event, now)
    if isinstance(event, Tick) and state.hosts.stopping is None and not state.over:
        state, more = _tick(state, event, now)
        actions += more
    return state, actions


def _hosts(state: Watcher, event: reducer.WatchEvent, now: float) -> Result:
    hosts, found = reducer.reduce(state.hosts, event, now)
    actions: List[Action] = list(found)
    return (state if hosts is state.hosts else replace(state, hosts=hosts)), actions


def _metrics(state: Watcher, event: Metrics, now: float) -> Result:
    view, decisions = training.on_metrics(state.training, event.lines, now)
    steps = [
        (rank, line["step"]) for rank, line in event.lines if isinstance(line.get("step"), int)
    ]
    last = {**state.last_steps, **dict(steps)}
    first = state.first_steps
    if len(first) < len(last):
        first = {**dict(reversed(steps)), **first}
    state = replace(state, training=view, first_steps=first, last_steps=last)
    actions: List[Action] = []
    for one in decisions if state.hosts.stopping is None else ():
        if state.rules.stop_on_divergence:
            judged = _judged(state, one, training.sentence(one), one.evidence)
            state, more = _hosts(state, judged, now)
        else:
            more = [_told(one)]
        actions += more
    return state, actions


def _tick(state: Watcher, event: Tick, now: float) -> Result:
    view, decisions = training.on_tick(
        state.training, now, all_heard=_all_heard(state.hosts, now), thorough=event.thorough
    )
    if view is not state.training:
        state = replace(state, training=view)
    actions: List[Action] = []
    for one in decisions:
        if one.rule == "hang":
            state, more = _take_stacks(state, one, now)
        else:
            more = [_told(one)]
        actions += more
    if state.taking is not None and now >= state.taking.until:
        state, more = _conclude(state, state.taking, now)
        actions += more
    return state, actions


def _all_heard(hosts: reducer.Watch, now: float) -> bool:
    if now - hosts.signs.oldest <= UNHEARD_S:
        return True
    heard = hosts.signs.last()
    return all(now - heard[host] <= UNHEARD_S for host in reducer.running_hosts(hosts))


def _take_stacks(state: Watcher, hang: Decide, now: float) -> Result:
    if state.taking is not None:
        return state, []
    running = reducer.running_hosts(state.hosts)
    sentence = f"{training.sentence(hang)}; taking the stacks of all ranks"
    taking = Taking(hang, now + state.rules.stacks_s, frozenset(running))
    actions: List[Action] = [Decide(hang.rule, hang.evidence, "take-stacks", sentence)]
    actions += [TakeStacks(host) for host in running]
    return replace(state, taking=taking), actions


def _stacks_taken(state: Watcher, event: StacksTaken) -> Result:
    """What is concluded is concluded at a tick, which knows who was heard meanwhile."""
    taking = state.taking
    if taking is None or event.host not in taking.missing:
        return state, []
    missing = taking.missing - {event.host}
    until = taking.until if missing else 0.0
    taking = replace(taking, missing=missing, found=taking.found + event.stacks, until=until)
    return replace(state, taking=taking), []


def _conclude(state: Watcher, taking: Taking, now: float) -> Result:
    """Name who stands elsewhere, and stop the run if the job says so."""
    state = replace(state, taking=None)
    groups = stacks.grouped(taking.found)
    odd = stacks.differing(groups)
    seen: Dict[str, Any] = {
        **taking.hang.evidence,
        "differ": list(odd),
        "stacks": stacks.evidence(groups),
        "not_asked": sorted(taking.missing),
    }
    if not training.hangs(state.training):
        text = "the ranks get on again: the run is left alone"
        return state, [Decide("hang", seen, "tell", text)]
    sentence = _hang_sentence(training.sentence(taking.hang), groups, odd)
    seen["sentence"] = sentence
    if odd and not seen["ranks"]:
        seen["ranks"] = list(odd)
    if not state.rules.stop_on_hang:
        return state, [Decide("hang", seen, "tell", sentence)]
    return _hosts(state, _judged(state, taking.hang, sentence, seen), now)


def _hang_sentence(hang: str, groups: Tuple[stacks.Group, ...], odd: Tuple[int, ...]) -> str:
    """With the places of ranks that stand elsewhere than most; where there is no most, of all."""
    if len(groups) < 2:
        return hang
    named = [group for group in groups if not odd or group.ranks[0] in odd]
    shown = "; ".join(f"rank {one.ranks[0]} in {one.where}" for one in named[:_SHOWN_PLACES])
    if not odd:
        return f"{hang}; ranks stand at {len(groups)} places: {shown}"
    others = next(group for group in groups if group not in named)
    return f"{hang}; not where the others are ({others.where}): {shown}"


def _judged(
    state: Watcher, one: Decide, sentence: str, evidence: Mapping[str, Any]
) -> reducer.Judged:
    rank = evidence.get("rank", next(iter(evidence.get("ranks", ())), None))
    known = state.training.ranks.get(rank) if isinstance(rank, int) else None
    return reducer.Judged(one.rule, sentence, evidence, known.host if known else "", rank)


def _told(one: Decide) -> Decide:
    return replace(one, action="tell", sentence=training.sentence(one))
