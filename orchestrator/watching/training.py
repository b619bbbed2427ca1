"""``watch(state, event, now) -> (state, decisions)``: what the metrics of the ranks give away.

Rules, each told once, with its evidence:

``hang``            no rank got on for longer than its own pace allows.
``straggler``       a host, slot or rank is slower than the others; told again only for another.
``loss-nan``        the loss is no number, for some steps in a row.
``scale-collapse``  every step overflows.

Pure; it has no clock and does no I/O. What is done about a decision is not decided here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Tuple

from orchestrator.watching.divergence import Divergence, DivergenceLimits, is_good, observe_loss
from orchestrator.watching.hang import HangLimits, find_hang
from orchestrator.watching.progress import RankProgress, observe
from orchestrator.watching.reducer import Decide
from orchestrator.watching.straggler import StragglerLimits, even_until, find_stragglers


@dataclass(frozen=True)
class Place:
    """A rank, its host, and the place of its device on the host."""

    rank: int
    host: str
    slot: int


@dataclass(frozen=True)
class TrainingLimits:
    hang: HangLimits = field(default_factory=HangLimits)
    straggler: StragglerLimits = field(default_factory=StragglerLimits)
    divergence: DivergenceLimits = field(default_factory=DivergenceLimits)


@dataclass(frozen=True)
class Training:
    """State of the watcher: the ranks that run, and what was told already."""

    ranks: Mapping[int, RankProgress]
    losses: Mapping[int, Divergence] = field(default_factory=dict)
    """Of the ranks whose last step was bad."""
    told: FrozenSet[Tuple[str, object]] = frozenset()
    even_until: int = 0
    """No rank can be slow before one of them is beyond this step."""
    limits: TrainingLimits = field(default_factory=TrainingLimits)


def begin_training(
    places: Iterable[Place], now: float, limits: TrainingLimits = TrainingLimits()
) -> Training:
    """The state when all ranks were just started."""
    ranks = {
        place.rank: RankProgress(place.rank, place.host, place.slot, moved=now) for place in places
    }
    return Training(ranks, limits=limits)


def on_metrics(
    state: Training, lines: Iterable[Tuple[int, Mapping[str, Any]]], now: float
) -> Tuple[Training, List[Decide]]:
    """Ranks wrote lines of metrics: (rank, line) in their order. Those of ranks that are not
    known, or have ended, are passed over."""
    ranks, losses = dict(state.ranks), dict(state.losses)
    verdicts: List[Tuple[str, Dict[str, Any]]] = []
    for rank, line in lines:
        known = ranks.get(rank)
        if known is None:
            continue
        ranks[rank] = seen = observe(known, line, now)
        if seen.step == known.step:
            continue
        if is_good(line):
            losses.pop(rank, None)
            continue
        losses[rank], verdict = observe_loss(
            losses.get(rank, Divergence()), line, state.limits.divergence
        )
        if verdict is not None:
            rule, evidence = verdict
            verdicts.append((rule, {"rank": rank, "host": known.host, **evidence}))
    state = replace(state, ranks=ranks, losses=losses)
    decisions: List[Decide] = []
    for rule, evidence in verdicts:
        state, more = _tell(state, rule, rule, evidence)
        decisions += more
    return state, decisions


def on_exit(state: Training, rank: int) -> Training:
    """A rank ended: it is neither still nor slow any more."""
    ranks = dict(state.ranks)
    ranks.pop(rank, None)
    return replace(state, ranks=ranks, even_until=0)


def sentence(decision: Decide) -> str:
    """A decision of ``on_metrics`` or ``on_tick`` for people."""
    seen = decision.evidence
    if decision.rule == "straggler":
        return f"{seen['kind']} {seen['name']} is slow: {seen['ratio']} times the usual step"
    if decision.rule == "loss-nan":
        return f"the loss of rank {seen['rank']} is no number since step {seen['first_step']}"
    if decision.rule == "scale-collapse":
        return f"rank {seen['rank']} has had no step without overflow since {seen['first_step']}"
    return str(seen["sentence"])


def on_tick(
    state: Training, now: float, *, all_heard: bool = True, thorough: bool = True
) -> Tuple[Training, List[Decide]]:
    """Time has passed: look for a hang, unless some host is not heard of (``all_heard``), whose
    ranks may well get on; and, when ``thorough``, for stragglers."""
    decisions: List[Decide] = []
    hang = find_hang(state.ranks.values(), now, state.limits.hang) if all_heard else None
    if hang is not None:
        evidence = {"sentence": hang.sentence(), **hang.evidence()}
        state, decisions = _tell(state, "hang", "hang", evidence)
    elif ("hang", "hang") in state.told:
        # It moves (again): the next standstill is another one.
        state = replace(state, told=state.told - {("hang", "hang")})
    if thorough and _furthest(state) > state.even_until:
        slow = find_stragglers(state.ranks.values(), state.limits.straggler)
        for one in slow:
            state, more = _tell(state, "straggler", (one.kind, one.name), one.evidence())
            decisions += more
        even = 0 if slow else even_until(state.ranks.values(), state.limits.straggler)
        if even != state.even_until:
            state = replace(state, even_until=even)
    return state, decisions


def _furthest(state: Training) -> float:
    return max((rank.step or 0 for rank in state.ranks.values()), default=0) or math.inf


def hangs(state: Training) -> bool:
    """Whether the hang that was told last is still one."""
    return ("hang", "hang") in state.told


def _tell(
    state: Training, rule: str, about: object, evidence: Dict[str, Any]
) -> Tuple[Training, List[Decide]]:
    if (rule, about) in state.told:
        return state, []
    return replace(state, told=state.told | {(rule, about)}), [Decide(rule, evidence)]
