"""The watcher's rules, one by one, and laws that hold for any sequence of events."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import List, Tuple

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watching import reducer
from orchestrator.watching.reducer import (
    Decide,
    Finish,
    Heard,
    Judged,
    NodeEvent,
    StopHost,
    SupervisorLost,
    Tick,
    Watch,
)


def play(state: Watch, *events: Tuple[reducer.WatchEvent, float]) -> Tuple[Watch, List]:
    done: List[reducer.Action] = []
    for event, now in events:
        state, actions = reducer.reduce(state, event, now)
        done += actions
    return state, done


def exited(host: str, name: str, code: int, *, collateral: bool = False, wall: float = 0.0):
    return NodeEvent(
        host,
        {
            "event": "process_exited",
            "name": name,
            "rank": int(name.rsplit("_", 1)[1]),
            "code": code,
            "collateral": collateral,
            "wall": wall,
        },
    )


def finished(host: str, outcome: str) -> NodeEvent:
    return NodeEvent(host, {"event": "finished", "outcome": outcome})


def test_all_hosts_succeed():
    state, actions = play(
        reducer.begin(["a", "b"], 0.0),
        (exited("a", "rank_0", 0), 1.0),
        (finished("a", "succeeded"), 1.0),
        (finished("b", "succeeded"), 2.0),
    )
    assert actions == [Finish("succeeded", None)]
    assert state.over


def test_first_failure_stops_the_other_hosts_and_is_kept():
    state, actions = play(
        reducer.begin(["a", "b", "c"], 0.0),
        (exited("b", "rank_1", 139), 1.0),
        (exited("a", "rank_0", 143, collateral=True), 2.0),
        (finished("a", "failed"), 2.0),
        (finished("b", "failed"), 2.0),
        (exited("c", "rank_2", 1, wall=5.0), 3.0),
        (finished("c", "failed"), 3.0),
    )
    stops = [action.host for action in actions if isinstance(action, StopHost)]
    assert stops == ["a", "c"]
    assert state.failure is not None
    assert (state.failure.process, state.failure.host) == ("rank_1", "b")
    assert "SIGSEGV (139)" in state.failure.sentence()
    assert isinstance(actions[-1], Finish)
    assert actions[-1].outcome == "failed"


def test_an_earlier_failure_that_arrives_later_is_the_first():
    state, _ = play(
        reducer.begin(["a", "b"], 0.0),
        (exited("a", "rank_0", 1, wall=20.0), 1.0),
        (exited("b", "rank_1", 1, wall=19.0), 1.1),
    )
    assert state.failure is not None
    assert state.failure.process == "rank_1"


def test_a_rank_that_we_ended_is_never_the_cause():
    state, actions = play(
        reducer.begin(["a"], 0.0), (exited("a", "rank_0", 143, collateral=True), 1.0)
    )
    assert state.failure is None
    assert actions == []


def test_stop_by_request_is_a_cancellation_on_all_hosts():
    stopping = NodeEvent("a", {"event": "stopping", "by": "request"})
    _, actions = play(
        reducer.begin(["a", "b"], 0.0),
        (stopping, 1.0),
        (finished("a", "cancelled"), 2.0),
        (finished("b", "cancelled"), 2.0),
    )
    assert [type(action) for action in actions] == [Decide, StopHost, Finish]
    assert actions[-1] == Finish("cancelled", None)


def requested(host: str, wall: float) -> NodeEvent:
    reason = reducer.STOP_REASON
    event = {"event": "stopping", "by": "stop (pid 7)", "reason": reason, "wall": wall}
    return NodeEvent(host, event)


def test_what_failed_before_a_stop_is_the_cause_even_if_it_is_heard_of_later():
    state, actions = play(
        reducer.begin(["a", "b"], 0.0),
        (requested("a", 10.0), 1.0),
        (exited("b", "rank_1", 1, wall=9.0), 1.1),
        (finished("a", "cancelled"), 2.0),
        (finished("b", "failed"), 2.0),
    )
    assert [one.rule for one in actions if isinstance(one, Decide)] == ["stop-requested"]
    assert state.failure is not None
    assert (state.failure.process, state.failure.wall) == ("rank_1", 9.0)
    assert actions[-1] == Finish("failed", state.failure)


def test_clocks_are_corrected_before_a_failure_and_a_stop_are_compared():
    late = exited("b", "rank_1", 1, wall=309.0)
    for ahead, outcome in ((300.0, "failed"), (298.0, "cancelled")):
        _, actions = play(
            reducer.begin(["a", "b"], 0.0),
            (requested("a", 10.0), 1.0),
            (replace(late, ahead=ahead), 1.1),
            (finished("a", "cancelled"), 2.0),
            (finished("b", "failed"), 2.0),
        )
        assert actions[-1].outcome == outcome


def test_what_fails_after_a_stop_is_a_consequence_even_if_it_is_heard_of_first():
    """The ranks of a host that is asked a little later lose the others."""
    _, actions = play(
        reducer.begin(["a", "b"], 0.0),
        (exited("b", "rank_1", 1, wall=10.5), 1.0),
        (requested("a", 10.0), 1.1),
        (finished("a", "cancelled"), 2.0),
        (finished("b", "failed"), 2.0),
    )
    assert actions[-1] == Finish("cancelled", None)


def test_our_own_stop_is_no_request_however_the_clocks_are():
    _, actions = play(
        reducer.begin(["a", "b"], 0.0),
        (exited("b", "rank_1", 1, wall=10.5), 1.0),
        (NodeEvent("a", {"event": "stopping", "by": "stop (pid 7)", "wall": 4.0}), 1.1),
        (finished("a", "cancelled"), 2.0),
        (finished("b", "failed"), 2.0),
    )
    assert actions[-1].outcome == "failed"


def test_a_host_that_falls_silent_while_a_run_is_stopped_is_told():
    state, actions = play(
        reducer.begin(["a", "b"], 0.0, silence_s=60.0),
        (requested("a", 10.0), 1.0),
        (finished("a", "cancelled"), 2.0),
        (Tick(), 90.0),
    )
    assert state.failure is not None
    assert (state.failure.rule, state.failure.host) == ("host-silent", "b")
    assert actions[-1] == Finish("failed", state.failure)


def test_a_supervisor_that_ends_the_run_by_itself_is_a_failure():
    event = {"event": "stopping", "by": "supervisor", "reason": "internal error", "wall": 1.0}
    state, actions = play(reducer.begin(["a", "b"], 0.0), (NodeEvent("a", event), 1.0))
    assert [one.host for one in actions if isinstance(one, StopHost)] == ["b"]
    assert state.failure is not None
    assert state.failure.sentence() == "the supervisor on a ended the run: internal error"


JOURNALS = st.fixed_dictionaries(
    {
        host: st.lists(
            st.tuples(st.sampled_from(["fails", "asked"]), st.integers(0, 20)), max_size=3
        ).map(lambda events: sorted(events, key=lambda event: event[1]))
        for host in ("a", "b", "c")
    }
)


@given(JOURNALS, st.randoms(use_true_random=False))
def test_the_first_cause_does_not_depend_on_which_host_is_heard_first(journals, chance):
    """It is the earliest failure before the first request, by the clocks."""
    waiting = {host: list(events) for host, events in journals.items()}
    state = reducer.begin(list(journals), 0.0)
    while any(waiting.values()):
        host = chance.choice([host for host, events in waiting.items() if events])
        kind, wall = waiting[host].pop(0)
        event = requested(host, wall) if kind == "asked" else exited(host, "rank_0", 1, wall=wall)
        state, _ = reducer.reduce(state, event, 1.0)
    told = [(wall, kind) for events in journals.values() for kind, wall in events]
    asked = min((wall for wall, kind in told if kind == "asked"), default=math.inf)
    failed = min((wall for wall, kind in told if kind == "fails"), default=math.inf)
    found = math.inf if state.failure is None else state.failure.wall
    assert found == (failed if failed < asked else math.inf)


def test_silence_is_waited_out_before_a_host_is_given_up():
    state = reducer.begin(["a", "b"], 0.0, silence_s=60.0)
    state, actions = play(state, (Heard(("b",)), 50.0), (Tick(), 59.0))
    assert actions == []
    state, actions = play(state, (Tick(), 60.0))
    assert [type(action) for action in actions] == [Decide, StopHost]
    assert state.failure is not None
    assert state.failure.rule == "host-silent"
    _, actions = play(state, (finished("b", "cancelled"), 61.0))
    assert actions[-1] == Finish("failed", state.failure)


def test_silence_of_all_hosts_is_more_likely_our_own_network():
    state = reducer.begin(["a", "b"], 0.0, silence_s=60.0)
    state, actions = play(state, (Tick(), 61.0), (Tick(), 62.0))
    assert [(one.rule, one.action) for one in actions] == [("all-silent", "wait")]
    state, actions = play(state, (Heard(("a", "b")), 300.0), (Tick(), 301.0))
    assert actions == []
    # One of them stays away: that is about the host.
    state, actions = play(state, (Heard(("a",)), 370.0), (Tick(), 371.0))
    assert state.failure is not None
    assert state.failure.host == "b"


def test_silence_of_all_hosts_is_not_waited_out_for_ever():
    state, actions = play(reducer.begin(["a", "b"], 0.0, silence_s=60.0), (Tick(), 600.0))
    assert state.over
    assert isinstance(actions[-1], Finish)
    assert actions[-1].outcome == "failed"


def test_a_lost_supervisor_is_a_failure():
    state, actions = play(reducer.begin(["a"], 0.0), (SupervisorLost("a"), 1.0))
    assert state.over
    assert actions[-1] == Finish("failed", state.failure)


HOSTS = ["a", "b", "c"]
EVENTS = st.one_of(
    st.builds(Heard, st.lists(st.sampled_from(HOSTS), unique=True).map(tuple)),
    st.builds(SupervisorLost, st.sampled_from(HOSTS)),
    st.builds(finished, st.sampled_from(HOSTS), st.sampled_from(["succeeded", "failed"])),
    st.builds(
        exited,
        st.sampled_from(HOSTS),
        st.sampled_from(["rank_0", "rank_1"]),
        st.sampled_from([0, 1, 137]),
        collateral=st.booleans(),
    ),
    st.just(Tick()),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 30)), max_size=40))
def test_laws(script):
    """A run ends at most once; success is never said after a failure; no host is stopped twice."""
    state = reducer.begin(HOSTS, 0.0)
    now = 0.0
    actions: List[reducer.Action] = []
    for event, elapsed in script:
        now += elapsed
        state, more = reducer.reduce(state, event, now)
        actions += more
    finishes = [action for action in actions if isinstance(action, Finish)]
    assert len(finishes) <= 1
    decided = [action for action in actions if isinstance(action, Decide)]
    if finishes and finishes[0].outcome == "succeeded":
        assert {one.action for one in decided} <= {"wait"}
        assert finishes[0].failure is None
    stopped = [action.host for action in actions if isinstance(action, StopHost)]
    assert len(stopped) == len(set(stopped))
    assert state.over == bool(finishes)


def test_a_standstill_stops_every_host_and_is_the_cause():
    state = reducer.begin(["a", "b"], 0.0)
    still = Judged("hang", "no rank got on", {"ranks": [3]}, "b", 3)
    state, actions = play(state, (still, 10.0))
    assert [one.rule for one in actions if isinstance(one, Decide)] == ["hang"]
    assert sorted(one.host for one in actions if isinstance(one, StopHost)) == ["a", "b"]
    ended = [
        (NodeEvent(host, {"event": "finished", "outcome": "cancelled"}), 11.0) for host in "ab"
    ]
    state, actions = play(state, *ended)
    assert state.failure is not None
    assert actions == [Finish("failed", state.failure)]
    assert (state.failure.rule, state.failure.sentence()) == ("hang", "no rank got on")


def test_a_standstill_after_a_failure_is_a_consequence():
    state, _ = play(reducer.begin(["a", "b"], 0.0), (exited("a", "rank_0", 3), 1.0))
    state, actions = play(state, (Judged("hang", "no rank got on", {}), 10.0))
    assert actions == []
    assert state.failure is not None
    assert state.failure.rule == "rank-failed"
