"""Hangs, stragglers and diverging losses, from the metrics of ranks; and laws of the watcher."""

from __future__ import annotations

import json
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watching.divergence import Divergence, observe_loss
from orchestrator.watching.hang import HangLimits, find_hang
from orchestrator.watching.progress import KEPT, RankProgress, observe
from orchestrator.watching.straggler import even_until, find_stragglers
from orchestrator.watching.training import (
    Place,
    begin_training,
    on_exit,
    on_metrics,
    on_tick,
    sentence,
)

HOSTS, SLOTS = 4, 8


def places(hosts: int = HOSTS, slots: int = SLOTS) -> List[Place]:
    return [
        Place(host * slots + s, f"node{host}", s) for host in range(hosts) for s in range(slots)
    ]


def phase(name: str, wall: float) -> Dict[str, Any]:
    return {"schema": 1, "phase": name, "wall": wall}


def step(number: int, wall: float, seconds: float = 2.0, **fields: Any) -> Dict[str, Any]:
    return {
        "schema": 1,
        "step": number,
        "step_time_s": seconds,
        "wall": wall,
        "loss": 3.0,
        **fields,
    }


def trained(steps: int, *, slow=None, ranks: int = HOSTS * SLOTS, pace: float = 2.0):
    """All ranks after ``steps`` steps; ``slow`` maps a place to how much longer it takes."""
    state = begin_training(places(), 0.0)
    now = 0.0
    for name in ("startup", "compile", "train"):
        now += 10.0
        state, decisions = on_metrics(state, [(r, phase(name, now)) for r in range(ranks)], now)
        assert decisions == []
    for number in range(1, steps + 1):
        now += pace
        lines = [
            (place.rank, step(number, now, pace * (slow(place) if slow else 1.0)))
            for place in places()[:ranks]
        ]
        state, decisions = on_metrics(state, lines, now)
        assert decisions == []
    return state, now


def test_the_place_of_a_rank_follows_its_lines():
    rank = RankProgress(0, "a", 0, moved=0.0)
    stages = []
    for now, line in enumerate(
        [phase("startup", 1), phase("compile", 2), phase("train", 9), step(1, 12), step(2, 14),
         phase("checkpoint", 15), phase("train", 45), step(3, 47), phase("done", 48)],
        1,
    ):  # fmt: skip
        rank = observe(rank, line, float(now))
        stages.append(rank.stage)
    assert stages == [
        *("startup", "compile", "first step", "step", "step"),
        *("checkpoint", "step", "step", "done"),
    ]
    assert rank.longest["compile"] == 7
    assert rank.longest["checkpoint"] == 30
    assert rank.moved == 9.0


def test_a_rank_that_stands_still_while_others_wait_is_named():
    state, now = trained(20)
    ahead = [(r, step(21, now + 2)) for r in range(HOSTS * SLOTS) if r != 13]
    state, _ = on_metrics(state, ahead, now + 2)
    state, decisions = on_tick(state, now + 600)
    assert decisions == []
    state, (decision,) = on_tick(state, now + 603)
    assert decision.rule == "hang"
    assert sentence(decision) == (
        "no rank got on for 601 s (limit 600 s), after step 20; behind the others: rank 13"
    )
    assert {key: value for key, value in decision.evidence.items() if key != "sentence"} == {
        "stage": "step", "step": 20, "still_s": 601.0, "limit_s": 600.0, "ranks": [13],
    }  # fmt: skip
    assert on_tick(state, now + 5000)[1] == []


@pytest.mark.parametrize("saving", [1, 2], ids=["one of two", "two of four"])
def test_halves_at_two_places_after_the_same_step_are_not_behind_each_other(saving: int) -> None:
    """None is named here: the stacks tell which rank goes nowhere."""
    ranks = [RankProgress(rank, "a", rank, moved=0.0) for rank in range(2 * saving)]
    for line in (phase("train", 0), step(1, 1)):
        ranks = [observe(rank, line, 1.0) for rank in ranks]
    ranks[:saving] = [observe(rank, phase("checkpoint", 2), 2.0) for rank in ranks[:saving]]
    hang = find_hang(ranks, 1e6)
    assert hang is not None
    assert hang.suspects == ()


def test_a_second_hang_after_it_went_on_is_told_again():
    state, now = trained(20)
    state, first = on_tick(state, now + 700)
    state, _ = on_metrics(state, [(r, step(21, now + 701)) for r in range(32)], now + 701)
    state, between = on_tick(state, now + 702)
    state, second = on_tick(state, now + 5000)
    assert [len(first), len(between), len(second)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        ([phase("startup", 0), phase("compile", 1)], HangLimits().compile_s),
        ([phase("compile", 0), phase("train", 1)], HangLimits().first_step_s),
        ([phase("train", 0), step(1, 1), phase("checkpoint", 2)], HangLimits().checkpoint_s),
        ([phase("train", 0), step(1, 1, 50.0)], 1000.0),
        ([phase("train", 0), step(1, 1), step(2, 301)], 900.0),
        ([phase("eval", 0), phase("train", 2000), phase("eval", 2001)], 6000.0),
        ([phase("train", 0), step(1, 1), phase("checkpoint", 2), phase("train", 4002),
          phase("checkpoint", 4003)], 12_000.0),
    ],
)  # fmt: skip
def test_each_phase_has_its_limit_and_learns(lines, limit):
    rank = RankProgress(0, "a", 0, moved=0.0)
    for line in lines:
        rank = observe(rank, line, 0.0)
    assert find_hang([rank], limit) is None
    found = find_hang([rank], limit + 1)
    assert found is not None
    assert found.limit_s == limit


@pytest.mark.parametrize("name", ["startup", "eval", "predict"])
def test_what_reports_nothing_while_it_works_is_not_judged(name):
    rank = observe(RankProgress(0, "a", 0, moved=0.0), phase(name, 0), 0.0)
    assert find_hang([rank], 1e9) is None


def test_while_one_rank_moves_it_is_no_hang():
    state, now = trained(20)
    for later in range(100, 3000, 100):
        state, _ = on_metrics(state, [(7, step(20 + later, now + later))], now + later)
        state, decisions = on_tick(state, now + later)
        assert decisions == []


def test_ranks_that_never_wrote_metrics_are_not_judged():
    state = begin_training(places(), 0.0)
    assert on_tick(state, 1e9)[1] == []


def test_a_rank_that_never_wrote_while_others_did_is_named():
    state = begin_training(places(1), 0.0)
    lines = [(r, line) for r in range(1, 8) for line in (phase("compile", 1), phase("train", 2))]
    state, _ = on_metrics(state, lines, 2.0)
    _, (decision,) = on_tick(state, 3700.0)
    assert decision.evidence["ranks"] == [0]
    assert decision.evidence["stage"] == "startup"


def test_ended_and_done_ranks_do_not_hang():
    state, now = trained(20)
    state, _ = on_metrics(state, [(r, phase("done", now)) for r in range(31)], now)
    state = on_exit(state, 31)
    assert on_tick(state, now + 1e6)[1] == []
    assert on_metrics(state, [(31, step(99, now))], now)[0].ranks.keys() == state.ranks.keys()


@pytest.mark.parametrize(
    ("slow", "kind", "name", "ranks"),
    [
        (lambda p: 1.5 if p.rank == 13 else 1.0, "rank", 13, [13]),
        (lambda p: 1.5 if p.host == "node2" else 1.0, "host", "node2", list(range(16, 24))),
        (lambda p: 1.4 if p.slot == 3 else 1.0, "slot", 3, [3, 11, 19, 27]),
    ],
)
def test_stragglers_by_rank_host_and_slot(slow, kind, name, ranks):
    state, now = trained(20, slow=slow)
    state, (decision,) = on_tick(state, now)
    assert decision.rule == "straggler"
    assert {key: decision.evidence[key] for key in ("kind", "name", "ranks")} == {
        "kind": kind, "name": name, "ranks": ranks,
    }  # fmt: skip
    assert decision.evidence["ratio"] >= 1.4
    assert on_tick(state, now)[1] == []


def test_an_even_spread_is_no_straggler():
    state, _ = trained(20, slow=lambda place: 1.0 + 0.1 * (place.rank % 8))
    assert find_stragglers(state.ranks.values()) == []


def test_a_few_steps_are_not_enough():
    state, _ = trained(5, slow=lambda place: 9.0 if place.rank == 1 else 1.0)
    assert find_stragglers(state.ranks.values()) == []


def losses(*lines):
    state, told = Divergence(), []
    for number, fields in enumerate(lines, 1):
        state, verdict = observe_loss(state, step(number, float(number), **fields))
        if verdict is not None:
            told.append(verdict)
    return told


NAN = {"loss": float("nan")}
OVERFLOW = {"loss": float("nan"), "overflow": True, "loss_scale": 1024.0}


def test_a_loss_that_is_no_number_for_some_steps():
    assert losses(NAN, NAN, {}, NAN, NAN) == []
    ((rule, evidence),) = losses({}, {"loss": None}, {"loss": "Infinity"}, {"loss": float("-inf")})
    assert (rule, evidence) == ("loss-nan", {"first_step": 2, "steps": 3})


def test_an_overflow_is_not_a_nan_but_many_are_a_collapse():
    assert losses(*[OVERFLOW] * 49, {}, *[OVERFLOW] * 49) == []
    ((rule, evidence),) = losses({}, *[OVERFLOW] * 50)
    assert rule == "scale-collapse"
    assert evidence == {"first_step": 2, "overflows": 50, "loss_scale": 1024.0}
    collapsed = {**OVERFLOW, "loss_scale": 1.0}
    assert losses(*[OVERFLOW] * 10, *[collapsed] * 15)[0][1]["overflows"] == 25


def test_a_nan_between_overflows_still_counts():
    told = losses(NAN, OVERFLOW, NAN, OVERFLOW, NAN)
    assert [rule for rule, _ in told] == ["loss-nan"]


def test_the_watcher_tells_of_a_nan_once_with_its_rank():
    state, now = trained(3)
    told = []
    for number in range(4, 20):
        lines = [(rank, step(number, now, loss=float("nan"))) for rank in (5, 6)]
        state, decisions = on_metrics(state, lines, now)
        told += decisions
    assert [(one.rule, one.evidence["rank"], one.evidence["host"]) for one in told] == [
        ("loss-nan", 5, "node0")
    ]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=4),
    st.sampled_from(["startup", "compile", "train", "checkpoint", "eval", "done"]),
)  # fmt: skip
LINES = st.dictionaries(
    st.sampled_from(["phase", "step", "wall", "loss", "loss_scale", "overflow", "step_time_s"]),
    VALUES,
)
EVENTS = st.lists(
    st.tuples(
        st.floats(0, 5000), st.sampled_from(["line", "tick", "exit"]), st.integers(0, 9), LINES
    )
)


def play(events):
    state, now, told = begin_training(places(1), 0.0), 0.0, []
    for after, kind, rank, line in events:
        now += after
        decisions: List[Any] = []
        if kind == "line":
            state, decisions = on_metrics(state, [(rank, line)], now)
        elif kind == "tick":
            state, decisions = on_tick(state, now)
        else:
            state = on_exit(state, rank)
        told += [(now, one) for one in decisions]
    return state, told


@given(EVENTS)
def test_laws(events):
    """Any lines at all: nothing fails, a replay decides the same, evidence fits a journal, and no
    rule but a hang is told twice of the same thing."""
    _, told = play(events)
    assert repr(play(events)[1]) == repr(told)
    for _, decision in told:
        json.dumps(dict(decision.evidence))
        assert sentence(decision)
    once = [
        (one.rule, one.evidence.get("kind"), one.evidence.get("name"))
        for _, one in told
        if one.rule != "hang"
    ]
    assert len(once) == len(set(once))


@given(EVENTS)
def test_a_hang_is_never_told_soon_after_a_rank_moved(events):
    state, now = begin_training(places(1), 0.0), 0.0
    for after, kind, rank, line in events:
        now += after
        if kind == "line":
            state, _ = on_metrics(state, [(rank, line)], now)
        elif kind == "tick":
            state, decisions = on_tick(state, now)
            running = [r for r in state.ranks.values() if r.phase != "done"]
            for decision in decisions:
                if decision.rule == "hang":
                    assert all(now - r.moved > HangLimits().step_s for r in running)


@given(st.integers(2, 40), st.floats(0.01, 100.0))
def test_the_limit_of_a_step_grows_with_the_pace(steps, pace):
    rank = RankProgress(0, "a", 0, moved=0.0)
    for number in range(steps):
        rank = observe(rank, step(number, number * pace, pace), 0.0)
    assert HangLimits().of(rank) >= max(600.0, 20 * pace * 0.999)


TIMES = st.floats(0.9, 1.3)


@given(st.data(), st.integers(3, 8), st.integers(0, 12))
def test_as_long_as_ranks_are_said_to_stay_even_none_is_slow(data, size, more):
    many = st.lists(TIMES, min_size=KEPT + more, max_size=KEPT + more)
    times = [data.draw(many) for _ in range(size)]
    ranks = [RankProgress(rank, "a", rank, moved=0.0) for rank in range(size)]
    for done in range(KEPT):
        ranks = [observe(one, step(done + 1, 0.0, times[one.rank][done]), 0.0) for one in ranks]
    until = even_until(ranks)
    for done in range(KEPT, KEPT + more):
        ranks = [observe(one, step(done + 1, 0.0, times[one.rank][done]), 0.0) for one in ranks]
        assert done + 1 > until or find_stragglers(ranks) == []


def test_ranks_with_few_steps_are_not_said_to_stay_even():
    state, _ = trained(KEPT)
    ranks = list(state.ranks.values())
    assert even_until(ranks) == KEPT + 8
    assert even_until([*ranks, RankProgress(99, "a", 0, moved=0.0)]) == 0
    assert even_until([]) == 0


def test_a_rank_that_becomes_slow_after_all_were_even_is_named():
    state, now = trained(KEPT)
    state, decisions = on_tick(state, now)
    assert (decisions, state.even_until) == ([], KEPT + 8)
    for number in range(KEPT + 1, KEPT + 30):
        now += 2.0
        lines = [(rank, step(number, now, 4.0 if rank == 3 else 2.0)) for rank in state.ranks]
        state, _ = on_metrics(state, lines, now)
        state, more = on_tick(state, now)
        decisions += more
    assert [(one.evidence["kind"], one.evidence["name"]) for one in decisions] == [("rank", 3)]
