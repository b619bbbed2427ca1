"""The spread of the starts of many hosts, clocks corrected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.engine.arming import Started, spread
from orchestrator.planning.plan import HostPlan, Plan, PlannedProcess

ENV = {"HCCL_CONNECT_TIMEOUT": "120"}


def plan(**env: str) -> Plan:
    rank = PlannedProcess("rank_0", 0, 0, ("true",), tuple(env.items()))
    service = replace(rank, name="scheduler", rank=None, env=())
    host = HostPlan("a", "a", "/r", "python3", (service, rank), ())
    return Plan("r", "c", "train", "standalone", 1, (host,), 30.0, 1.0, False)


def start(host: str, when: float, *, ahead: float = 0.0, took: float = 0.5) -> Started:
    """A host that was started at ``when`` by our clock, and answered ``took`` later."""
    return Started(host, when + ahead, when + took + ahead, when - 1.0, when + took)


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -5.0])
def test_the_clocks_of_hosts_do_not_count(ahead):
    found = spread([start("a", 10.0), start("b", 13.5, ahead=ahead)], plan(**ENV))
    assert found is not None
    assert (found.spread_s, found.first, found.last) == (3.5, "a", "b")
    assert (found.clock_s, found.limit_s, found.warning) == (1.5, 120.0, "")


@pytest.mark.parametrize(("seconds", "how"), [(60.0, "near"), (121.0, "more than")])
def test_a_spread_that_hccl_may_not_wait_for_is_warned_of(seconds, how):
    found = spread([start("a", 0.0), start("b", seconds)], plan(**ENV))
    assert found is not None
    assert found.warning.startswith(f"b was started {seconds:.1f} s after a, {how} the 120 s of")


def test_without_hccl_there_is_no_limit():
    found = spread([start("a", 0.0), start("b", 900.0)], plan())
    assert found is not None
    assert (found.limit_s, found.warning) == (None, "")
    assert spread([], plan()) is None
