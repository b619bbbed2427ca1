"""The policy of restarts: what it decides, and that it always comes to an end."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watching.retry import (
    CLASSES,
    GIVE_UP,
    RESTART,
    WITHOUT_HOST,
    Attempt,
    Policy,
    decide,
)

THREE = Policy(max_restarts=3)


def failed(signature: str = "killed", kind: str = "unknown", **fields: object) -> Attempt:
    return Attempt("failed", signature, kind, **fields)  # type: ignore[arg-type]


def rule(policy: Policy, *attempts: Attempt, hosts: int = 4, spares: int = 0) -> str:
    return decide(policy, attempts, hosts=hosts, spares=spares).rule


def test_a_passing_fault_is_tried_again_from_the_last_complete_step():
    decision = decide(THREE, [failed(host="n1", step=40)], hosts=4, spares=0)
    assert (decision.action, decision.rule) == (RESTART, "passing")
    assert "from step 40" in decision.sentence
    assert decision.evidence["signature"] == "killed"


@pytest.mark.parametrize("kind", ["user", "config"])
def test_what_would_fail_again_is_never_tried_again(kind):
    assert rule(THREE, failed(kind=kind, step=40)) == f"{kind}-error"


def test_the_same_again_without_progress_ends_it():
    assert rule(THREE, failed(step=40), failed(step=40)) == "same-again"
    assert rule(THREE, failed(), failed()) == "same-again"
    assert rule(THREE, failed(step=40), failed(step=44)) == "passing"
    assert rule(THREE, failed(step=40), failed("crash", step=40)) == "passing"


def test_a_bad_host_is_left_out_at_once_and_a_spare_comes_first():
    bad = failed("EL0001", "host", host="n1", step=8)
    spared = decide(THREE, [bad], hosts=4, spares=1)
    assert (spared.action, spared.host, spared.spare) == (WITHOUT_HOST, "n1", True)
    fewer = decide(Policy(3, min_hosts=3), [bad], hosts=4, spares=0)
    assert (fewer.action, fewer.host, fewer.spare) == (WITHOUT_HOST, "n1", False)
    assert "on 3 hosts" in fewer.sentence
    assert rule(Policy(3, min_hosts=4), bad) == "too-few-hosts"
    assert rule(THREE, bad) == "too-few-hosts"
    assert rule(Policy(3, spares=False), bad, spares=2) == "too-few-hosts"


def test_a_host_that_is_blamed_twice_is_left_out():
    once = failed("EI0013", "network", host="n1", step=8)
    again = failed("EI0013", "network", host="n1", step=12)
    assert rule(THREE, once, spares=1) == "passing"
    assert rule(THREE, once, again, spares=1) == "bad-host"


def test_what_ended_otherwise_is_left_alone():
    assert rule(THREE, Attempt("cancelled")) == "ended-well"
    assert rule(THREE, Attempt("succeeded")) == "ended-well"
    assert rule(Policy(), failed()) == "no-recovery"


@st.composite
def runs(draw: st.DrawFn) -> tuple[Policy, List[Attempt], int]:
    hosts = draw(st.integers(1, 6))
    names = [f"n{number}" for number in range(hosts)]
    attempt = st.builds(
        failed,
        st.sampled_from(["killed", "crash", "EL0001"]),
        st.sampled_from(CLASSES),
        host=st.sampled_from([None, *names]),
        step=st.one_of(st.none(), st.integers(1, 9)),
    )
    policy = st.builds(
        Policy, st.integers(0, 5), st.one_of(st.none(), st.integers(1, 6)), st.booleans()
    )
    return draw(policy), draw(st.lists(attempt, min_size=12, max_size=12)), hosts


@given(runs(), st.integers(0, 3))
def test_it_ends_and_keeps_within_what_is_allowed(run, spares):
    """Whatever fails: at most ``max_restarts`` restarts, never below ``min_hosts``, never more
    spares than there are, and no restart for what the job itself did."""
    policy, faults, hosts = run
    attempts: List[Attempt] = []
    began = hosts
    for fault in faults:
        attempts.append(fault)
        decision = decide(policy, attempts, hosts=hosts, spares=spares)
        assert decision.sentence
        if decision.action == GIVE_UP:
            break
        assert fault.kind not in ("user", "config")
        if decision.action == WITHOUT_HOST and decision.spare:
            assert policy.spares
            spares -= 1
        elif decision.action == WITHOUT_HOST:
            hosts -= 1
        assert spares >= 0
        assert hosts == began or hosts >= (policy.min_hosts or began)
    else:
        raise AssertionError("it never ended")
    assert len(attempts) - 1 <= policy.max_restarts


@given(runs(), st.integers(0, 3))
def test_the_same_history_gives_the_same_decision(run, spares):
    policy, attempts, hosts = run
    first = decide(policy, attempts[:3], hosts=hosts, spares=spares)
    assert first == decide(policy, attempts[:3], hosts=hosts, spares=spares)
