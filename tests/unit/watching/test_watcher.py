"""The whole watcher: what a hang leads to, and laws that hold for any sequence of events."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watching import reducer, watcher
from orchestrator.watching.hang import HangLimits
from orchestrator.watching.reducer import Decide, Finish, Heard, NodeEvent, StopHost, Tick
from orchestrator.watching.stacks import Stack, differing, frames, grouped
from orchestrator.watching.training import Place, TrainingLimits
from orchestrator.watching.watcher import Metrics, Rules, StacksTaken, TakeStacks, Watcher

HOSTS = ("a", "b")
PLACES = [Place(0, "a", 0), Place(1, "a", 1), Place(2, "b", 0), Place(3, "b", 1)]
LIMITS = TrainingLimits(hang=HangLimits(step_s=10.0))


def dump(*calls: str) -> str:
    lines = [f'  File "/code/{call}.py", line 7 in {call}' for call in calls]
    return "Current thread 0x00007f00 (most recent call first):\n" + "\n".join(lines) + "\n"


def stack(rank: int, *calls: str) -> Stack:
    return Stack(rank, "ab"[rank // 2], "faulthandler", dump(*calls))


def trained(**rules: Any) -> Watcher:
    state, _ = watcher.begin(HOSTS, PLACES, Rules(limits=LIMITS, **rules), 0.0)
    for number in range(1, 4):
        lines = tuple((p.rank, {"step": number, "step_time_s": 0.1}) for p in PLACES)
        state, actions = watcher.reduce(state, Metrics(lines), float(number))
        assert actions == []
    return state


def play(state: Watcher, *events: Tuple[watcher.Event, float]) -> Tuple[Watcher, List[Any]]:
    done: List[Any] = []
    for event, now in events:
        state, actions = watcher.reduce(state, event, now)
        done += actions
    return state, done


STILL = ((Heard(HOSTS), 20.0), (Tick(), 20.0))


def test_on_a_hang_stacks_are_taken_before_the_run_is_stopped():
    state, actions = play(trained(), *STILL)
    assert [one.action for one in actions if isinstance(one, Decide)] == ["take-stacks"]
    assert [one.host for one in actions if isinstance(one, TakeStacks)] == ["a", "b"]
    state, actions = play(
        state,
        (StacksTaken("a", (stack(0, "wait", "step"), stack(1, "wait", "step"))), 20.5),
        (Tick(), 21.0),
        (StacksTaken("b", (stack(2, "read", "step"), stack(3, "wait", "step"))), 21.2),
    )
    assert actions == []
    state, actions = play(state, (Tick(), 21.5))
    (stop,) = [one for one in actions if isinstance(one, Decide)]
    assert (stop.rule, stop.action, stop.evidence["differ"]) == ("hang", "stop", [2])
    assert stop.evidence["not_asked"] == []
    assert [one.host for one in actions if isinstance(one, StopHost)] == ["a", "b"]
    assert state.hosts.failure is not None
    assert (state.hosts.failure.rank, state.hosts.failure.host) == (2, "b")


def test_without_a_majority_all_places_are_told():
    state, _ = play(trained(), *STILL)
    halves = [
        (StacksTaken("a", (stack(0, "wait"),)), 21.0),
        (StacksTaken("b", (stack(2, "read"),)), 21.0),
    ]
    _, actions = play(state, *halves, (Tick(), 21.5))
    assert actions[0].evidence["differ"] == []
    told = "ranks stand at 2 places: rank 0 in wait (wait.py:7); rank 2 in read (read.py:7)"
    assert actions[0].sentence.endswith(told)


def test_a_host_that_does_not_answer_is_not_waited_for_without_end():
    state, _ = play(trained(stacks_s=5.0), *STILL)
    state, actions = play(state, (StacksTaken("a", ()), 21.0), (Tick(), 24.9))
    assert actions == []
    _, actions = play(state, (Tick(), 25.0))
    assert actions[0].evidence["not_asked"] == ["b"]


def test_a_run_that_gets_on_while_stacks_are_taken_is_left_alone():
    state, _ = play(trained(), *STILL)
    state, actions = play(
        state,
        (StacksTaken("a", ()), 20.5),
        (Metrics(((0, {"step": 4, "step_time_s": 17.0}),)), 20.6),
        (StacksTaken("b", ()), 20.7),
        (Tick(), 21.0),
    )
    assert [(one.rule, one.action) for one in actions] == [("hang", "tell")]
    assert state.hosts.stopping is None


def test_a_job_may_only_be_told_of_its_hangs():
    state, actions = play(
        trained(stop_on_hang=False),
        *STILL,
        (StacksTaken("a", ()), 20.5),
        (StacksTaken("b", ()), 20.5),
        (Tick(), 21.0),
        (Tick(), 22.0),
    )
    assert [one.action for one in actions if isinstance(one, Decide)] == ["take-stacks", "tell"]
    assert state.hosts.stopping is None


def test_where_a_host_is_not_heard_a_standstill_is_not_called_a_hang():
    _, actions = play(trained(), (Heard(("a",)), 20.0), (Tick(), 20.0))
    assert actions == []


@pytest.mark.parametrize(("stop", "action"), [(True, "stop"), (False, "tell")])
def test_a_job_says_what_a_lost_loss_leads_to(stop, action):
    lines = tuple((1, {"step": step, "loss": None}) for step in range(4, 8))
    _, actions = play(trained(stop_on_divergence=stop), (Metrics(lines), 5.0))
    assert [(one.rule, one.action) for one in actions if isinstance(one, Decide)] == [
        ("loss-nan", action)
    ]
    assert bool([one for one in actions if isinstance(one, StopHost)]) == stop


def test_what_no_python_tells_the_kernel_does():
    text = "sleep pid 7 thread 7: state S, waits in futex_wait\n  stack"
    groups = grouped([Stack(0, "a", "proc", text), Stack(1, "a", "proc", text.replace("7", "9"))])
    assert [group.ranks for group in groups] == [(0, 1)]
    assert groups[0].where == "state S, waits in futex_wait"


def test_the_main_thread_is_the_one_that_got_the_signal():
    text = 'Thread 0x01 (most recent call first):\n  File "/q.py", line 1 in get\n\n'
    assert frames(Stack(0, "a", "faulthandler", text + dump("wait"))) == ("wait (wait.py:7)",)
    assert frames(Stack(0, "a", "faulthandler", text)) == ("get (q.py:1)",)
    assert frames(Stack(0, "a", "faulthandler", "")) == ()


def test_of_two_halves_none_differs():
    assert differing(grouped([stack(0, "wait"), stack(1, "read")])) == ()


def kernel(rank, state, call):
    text = f"python pid {rank} thread {rank}: state {state}, waits in {call}"
    return Stack(rank, "a", "proc", text)


def test_a_stopped_process_is_named_though_the_others_are_caught_at_two_calls():
    seen = [kernel(0, "S", "hrtimer_nanosleep"), kernel(1, "R", "nothing")]
    stopped = [kernel(2, "T", "do_signal_stop"), kernel(3, "t", "ptrace_stop")]
    assert differing(grouped(seen + stopped[:1])) == (2,)
    assert differing(grouped(seen + stopped)) == (2, 3)
    assert differing(grouped(stopped)) == ()
    asked = (StacksTaken("a", tuple(seen)), 21.0), (StacksTaken("b", tuple(stopped[:1])), 21.0)
    _, actions = play(trained(), *STILL, *asked, (Tick(), 21.5))
    last = next(one for one in actions if isinstance(one, Decide) and one.action == "stop")
    assert last.evidence["differ"] == [2]
    assert last.sentence.endswith(
        "; not where the others are (state S, waits in hrtimer_nanosleep): "
        "rank 2 in state T, waits in do_signal_stop"
    )


STEPS = st.builds(
    lambda rank, step, loss: Metrics(((rank, {"step": step, "loss": loss}),)),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from([1.0, None, "nan"]),
)
EXITS = st.builds(
    lambda host, rank, code, ours: NodeEvent(
        host, {"event": "process_exited", "rank": rank, "code": code, "collateral": ours}
    ),
    st.sampled_from(HOSTS),
    st.integers(0, 3),
    st.sampled_from([0, 1, 137]),
    st.booleans(),
)
EVENTS = st.one_of(
    STEPS,
    EXITS,
    st.builds(Heard, st.sets(st.sampled_from(HOSTS)).map(tuple)),
    st.builds(Tick, st.booleans()),
    st.builds(reducer.SupervisorLost, st.sampled_from(HOSTS)),
    st.builds(
        lambda host, outcome: NodeEvent(host, {"event": "finished", "outcome": outcome}),
        st.sampled_from(HOSTS),
        st.sampled_from(["succeeded", "failed", "cancelled"]),
    ),
    st.builds(
        lambda host, calls: StacksTaken(
            host, tuple(stack(n, call) for n, call in enumerate(calls))
        ),
        st.sampled_from(HOSTS),
        st.lists(st.sampled_from(["wait", "read"]), max_size=3),
    ),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 30)), max_size=60), st.booleans(), st.booleans())
def test_laws(script, stop_on_hang, stop_on_divergence):
    """A run ends once, after which nothing is decided; it is stopped once, for one rule; no host
    is stopped twice; what failed is never said to have succeeded; and the same events lead to the
    same decisions."""
    rules = Rules(limits=LIMITS, stop_on_hang=stop_on_hang, stop_on_divergence=stop_on_divergence)

    def run() -> Tuple[Watcher, List[Any]]:
        state, actions = watcher.begin(HOSTS, PLACES, rules, 0.0)
        now = 0.0
        for event, elapsed in script:
            now += elapsed
            over = state.over
            state, more = watcher.reduce(state, event, now)
            assert not (over and more)
            actions += more
        return state, actions

    state, actions = run()
    finishes = [one for one in actions if isinstance(one, Finish)]
    stops = [one for one in actions if isinstance(one, Decide) and one.action == "stop"]
    hosts = [one.host for one in actions if isinstance(one, StopHost)]
    assert state.over == (len(finishes) == 1)
    assert len(stops) <= 1
    assert len(hosts) == len(set(hosts))
    assert not (hosts and not stops)
    if finishes and finishes[0].outcome == "succeeded":
        assert not stops
    assert run() == (state, actions)
