"""plan.json: the same plan comes back, a changed one does not."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict

import pytest

from orchestrator.errors import PlanError
from orchestrator.planning.plan import Plan, plan_from_json
from orchestrator.planning.planner import plan
from tests.unit.planning.inputs import cluster12, cpu, job


def cluster_plan() -> Plan:
    return plan(cluster12(), job(), {})


@pytest.fixture
def made() -> Plan:
    return plan(cpu("10.0.0.[1-2]"), job(env={"A": "你好\n'\""}), {})


def test_what_was_written_comes_back(made: Plan) -> None:
    for original in (made, cluster_plan()):
        back = plan_from_json(original.to_json())
        assert back == original
        assert back.to_json() == original.to_json()


def test_a_text_that_all_hosts_receive_is_written_once() -> None:
    whole = cluster_plan()
    assert whole.rank_table is not None
    assert whole.to_json().count(json.dumps(whole.rank_table)) == 1


def test_the_file_says_its_schema_and_digest(made: Plan) -> None:
    top = json.loads(made.to_json())
    assert top["schema"] == 1
    assert top["digest"] == made.digest


def change(edit: Callable[[Dict[str, Any]], None], made: Plan) -> str:
    top = json.loads(made.to_json())
    edit(top)
    return json.dumps(top)


@pytest.mark.parametrize(
    "edit",
    [
        lambda top: top.update(grace_s=1),
        lambda top: top["hosts"][0]["processes"][1]["env"].update(A="b"),
        lambda top: top["hosts"][0]["processes"][1]["argv"].append("x"),
        lambda top: top["hosts"].reverse(),
        lambda top: top["texts"].update({next(iter(top["texts"])): "other"}),
        lambda top: top["hosts"][0]["files"][0].update(mode="0777"),
        lambda top: top.update(digest=None),
    ],
)
def test_a_changed_plan_is_refused(made: Plan, edit: Callable[[Dict[str, Any]], None]) -> None:
    with pytest.raises(PlanError, match="its digest does not fit"):
        plan_from_json(change(edit, made))


@pytest.mark.parametrize(
    "edit",
    [
        lambda top: top["hosts"][0]["files"][0].update(path="../../.bashrc"),
        lambda top: top["hosts"][0]["files"][0].update(path="/etc/passwd"),
        lambda top: top["hosts"][0]["files"][0].update(path="a//b"),
        lambda top: top["hosts"][0].update(host="../x"),
        lambda top: top["hosts"][0].update(run_dir="relative"),
        lambda top: top["hosts"][0].update(run_dir="/data/../etc"),
        lambda top: top.update(run_id="a/b"),
        lambda top: top["hosts"][0]["processes"][0].update(name=".."),
        lambda top: top["hosts"][0]["processes"][0].update(rank=-1),
        lambda top: top["hosts"][0]["files"][0].update(mode="rwx"),
        lambda top: top["hosts"][0]["processes"][0].update(argv=[1]),
        lambda top: top.update(texts={}),
        lambda top: top.update(hosts=3),
        lambda top: top.pop("recipe"),
    ],
)
def test_a_hostile_or_broken_plan_is_refused(
    made: Plan, edit: Callable[[Dict[str, Any]], None]
) -> None:
    with pytest.raises(PlanError, match="not a whole plan"):
        plan_from_json(change(edit, made))
