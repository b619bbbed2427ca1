"""spec.json: each field checked, each error named."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.node import spec
from orchestrator.node.failure import NodeError

GOOD: Dict[str, Any] = {
    "schema": 1,
    "run_id": "r1",
    "host": "node0",
    "workdir": "/data/glm2",
    "grace_s": 10.0,
    "heartbeat_s": 1,
    "leases": ["device_0"],
    "processes": [
        {"name": "scheduler", "rank": None, "argv": ["bash", "ranks/scheduler/launch.sh"]},
        {"name": "rank_0", "rank": 0, "argv": ["bash", "ranks/rank_0/launch.sh"]},
    ],
}


def parse(value: Any) -> spec.Spec:
    return spec.parse(json.dumps(value).encode())


def test_a_good_one() -> None:
    found = parse(GOOD)
    assert (found.run_id, found.grace_s, found.heartbeat_s) == ("r1", 10.0, 1.0)
    assert found.linger_s == spec.DEFAULT_LINGER_S
    rank = found.processes[1]
    assert (rank.name, rank.rank, rank.argv) == ("rank_0", 0, ("bash", "ranks/rank_0/launch.sh"))


def process(**fields: Any) -> Dict[str, Any]:
    return {"processes": [{"name": "rank_0", "rank": 0, "argv": ["true"], **fields}]}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schema": 2}, "schema: 2"),
        ({"schema": None}, "schema: None"),
        ({"run_id": ""}, "run_id: ''"),
        ({"run_id": 7}, "run_id: 7"),
        ({"host": "a\0b"}, "host: "),
        ({"workdir": "data"}, "workdir: 'data' is not an absolute path"),
        ({"grace_s": -1}, "grace_s: -1"),
        ({"grace_s": True}, "grace_s: True"),
        ({"grace_s": float("nan")}, "grace_s: nan"),
        ({"heartbeat_s": 0}, "heartbeat_s: 0"),
        ({"linger_s": "long"}, "linger_s: 'long'"),
        ({"leases": "device_0"}, "leases: must be a list"),
        ({"leases": ["../x"]}, "leases: '../x'"),
        ({"leases": ["a", "a"]}, "leases: 'a' appears twice"),
        ({"processes": []}, "processes: must be a list with at least one"),
        ({"processes": [7]}, "processes[0]: must be an object"),
        (process(name=".."), "processes[0].name: '..'"),
        (process(name="a/b"), "processes[0].name: 'a/b'"),
        (process(name=None), "processes[0].name: None"),
        (process(rank="0"), "processes[0].rank: '0'"),
        (process(rank=-1), "processes[0].rank: -1"),
        (process(rank=False), "processes[0].rank: False"),
        (process(rank=None), "processes: none of them is a rank"),
        (process(argv=[]), "processes[0].argv: "),
        (process(argv="true"), "processes[0].argv: "),
        (process(argv=["a\0"]), "processes[0].argv: "),
        ({"processes": GOOD["processes"][1:] * 2}, "processes: name: 'rank_0' appears twice"),
        (
            {"processes": [{"name": n, "rank": 3, "argv": ["true"]} for n in "ab"]},
            "processes: rank: 3 appears twice",
        ),
    ],
)
def test_what_is_wrong_is_named(change: Dict[str, Any], where: str) -> None:
    with pytest.raises(NodeError) as caught:
        parse({**GOOD, **change})
    assert caught.value.exit_status == 3
    assert caught.value.message.startswith(f"spec.json: {where}")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, max_size=3), st.booleans())
def test_anything_else_is_a_spec_error(change: Dict[str, Any], whole: bool) -> None:
    problem = None
    try:
        parse({**GOOD, **change} if whole else change)
    except NodeError as error:
        problem = error
    assert problem is None or problem.code == "spec"


@given(st.binary(max_size=40))
def test_any_bytes_are_a_spec_error(data: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        spec.parse(data)
    assert caught.value.code == "spec"
