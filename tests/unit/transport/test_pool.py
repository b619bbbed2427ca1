"""Fan-out: bounded, in order, no failure hides another's result, bugs are not swallowed."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostTimeout, HostUnreachable, OrchError
from orchestrator.transport.pool import Outcome, fan_out


@dataclass(frozen=True)
class Node:
    name: str
    fails: bool = False


def visit(node: Node) -> str:
    if node.fails:
        raise HostUnreachable("gone", host=node.name)
    return node.name.upper()


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 8))
def test_one_outcome_a_host_in_the_order_given(fails: List[bool], limit: int) -> None:
    nodes = [Node(f"node{i}", failing) for i, failing in enumerate(fails)]
    outcomes = fan_out(nodes, visit, limit=limit)
    assert [(o.host, o.ok) for o in outcomes] == [(n.name, not n.fails) for n in nodes]
    for node, outcome in zip(nodes, outcomes):
        if node.fails:
            assert isinstance(outcome.error, HostUnreachable)
            assert outcome.value is None
        else:
            assert outcome == Outcome(node.name, value=node.name.upper())


def test_no_more_than_the_limit_at_once_and_no_less() -> None:
    """Three meet at the barrier each time: with fewer it would break, with more be seen."""
    meeting = threading.Barrier(3, timeout=30)
    inside, most, lock = 0, 0, threading.Lock()

    def meet(node: Node) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        meeting.wait()
        with lock:
            inside -= 1
        meeting.wait()

    fan_out([Node(str(i)) for i in range(9)], meet, limit=3)
    assert most == 3


def test_progress_is_reported_in_the_callers_thread_as_hosts_end() -> None:
    first_may_end = threading.Event()
    reported: List[str] = []

    def work(node: Node) -> None:
        if node.name == "slow":
            assert first_may_end.wait(30)

    def on_done(outcome: Outcome[None]) -> None:
        assert threading.current_thread() is threading.main_thread()
        reported.append(outcome.host)
        first_may_end.set()

    fan_out([Node("slow"), Node("quick")], work, on_done=on_done)
    assert reported == ["quick", "slow"]


def test_a_bug_is_raised_after_all_have_ended() -> None:
    ended: List[str] = []

    def work(node: Node) -> None:
        if node.name == "bug":
            raise ZeroDivisionError("a bug")
        if node.fails:
            raise HostTimeout("slow", host=node.name)

    nodes = [Node("bug"), Node("b"), Node("c", fails=True)]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fan_out(nodes, work, limit=1, on_done=lambda outcome: ended.append(outcome.host))
    assert ended == ["b", "c"]


def test_an_interrupt_starts_no_more_hosts_and_waits_for_none() -> None:
    started: List[str] = []
    stuck = threading.Event()

    def work(node: Node) -> None:
        started.append(node.name)
        if node.name == "1":
            os.kill(os.getpid(), signal.SIGINT)
        stuck.wait(60)

    with pytest.raises(KeyboardInterrupt):
        fan_out([Node(str(i)) for i in range(10)], work, limit=2)
    assert not stuck.is_set()
    assert set(started) <= {"0", "1"}
    stuck.set()


def test_an_interrupt_inside_a_host_is_not_an_outcome() -> None:
    def work(node: Node) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fan_out([Node("a")], work)


def test_nothing_to_do() -> None:
    assert fan_out([], visit) == []


def test_the_base_of_our_errors_is_an_outcome_too() -> None:
    def work(node: Node) -> None:
        raise OrchError("something known", host=node.name)

    (outcome,) = fan_out([Node("a")], work)
    assert str(outcome.error) == "a: something known"
