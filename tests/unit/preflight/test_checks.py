"""Checks on what hosts answered. Not run on hardware."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Optional, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostNotReady, HostUnreachable
from orchestrator.preflight.catalogue import CANN, CHECKS
from orchestrator.preflight.checks import judge, not_for
from orchestrator.preflight.compare import UNKNOWN, clock_findings, differences
from orchestrator.preflight.findings import bad_hosts, exit_status
from orchestrator.preflight.report import Clock, parse_report
from orchestrator.preflight.survey import Exchange, Survey
from tests.cluster.preflight import ascend
from tests.unit.preflight.surveys import EIGHT, host, report, survey

Bad = Set[Tuple[str, str, str, Optional[int]]]


def bad(found: Survey) -> Bad:
    return {
        (f.status, f.check, f.host, f.device) for f in judge(found) if f.status in ("WARN", "CRIT")
    }


def test_a_healthy_cluster() -> None:
    found = judge(survey(report(1), report(2), report(3)))
    assert {f.status for f in found} == {"OK", "SKIP"}
    assert all(f.remedy == "" for f in found)
    order = [check.name for check in CHECKS]
    assert [f.check for f in found] == sorted((f.check for f in found), key=order.index)


def test_a_tool_that_hangs() -> None:
    hung = report(2, {"npu-smi info -t ecc -i 3": None})
    assert bad(survey(report(1), hung)) == {("CRIT", "tools", "node2", 3)}


def test_a_table_that_ends_before_the_processes() -> None:
    """Nothing is known of them: not OK."""
    table = "\n".join(ascend.npu_table(EIGHT).splitlines()[:-8])
    found = judge(survey(report(1), report(2, {"npu-smi info": table})))
    unclear = {(f.check, f.device) for f in found if f.status != "OK" and f.host == "node2"}
    assert unclear == {("tool-output", device) for device in (4, 5, 6, 7)}
    quiet = {f.device for f in found if f.check == "npu-processes" and f.host == "node2"}
    assert quiet == {0, 1, 2, 3}


def test_a_process_of_a_run_of_ours() -> None:
    table = ascend.npu_table(EIGHT, processes={1: (77, "python", 900)})
    busy = replace(report(2, {"npu-smi info": table}), run_ids={77: "train-7"})
    (finding,) = [f for f in judge(survey(report(1), busy)) if f.status == "CRIT"]
    assert finding.remedy == "glm2-orch stop train-7"
    assert "of run 'train-7'" in finding.evidence


def test_the_wiring_of_910a() -> None:
    """Devices k and k+4 of a host share a subnet: all hosts alike, so only the pair is odd."""
    changed = {"hccn_tool -i 5 -ip -g": "ipaddr:10.9.1.1\nnetmask:255.255.0.0"}
    odd = [report(number, changed) for number in (1, 2)]
    assert bad(survey(*odd)) == {("WARN", "wiring", name, 5) for name in ("node1", "node2")}
    newer = {**changed, "npu-smi info": ascend.npu_table(EIGHT).replace("910ProB", "910B3  ")}
    assert bad(survey(*(report(number, newer) for number in (1, 2)))) == set()


def test_of_one_host_the_network_is_a_warning() -> None:
    down = report(1, {"hccn_tool -i 3 -link -g": "link status: DOWN"})
    assert bad(survey(down)) == {("WARN", "link", "node1", 3)}


def test_hosts_of_another_kind() -> None:
    hosts = (host(1, target="CPU"), host(2, target="CPU"))
    plain = replace(report(1), answers=())
    found = replace(survey(plain, plain), hosts=hosts)
    judged = judge(found)
    assert {f.status for f in judged} == {"OK", "SKIP"}
    skipped = [f for f in judged if f.check in not_for(hosts)]
    assert {f.evidence for f in skipped} == {"only for Ascend, not for CPU"}
    assert {f.check for f in skipped} == {check.name for check in CHECKS if check.target}


def test_hosts_that_did_not_answer() -> None:
    found = replace(
        survey(report(1), report(2), report(3)),
        errors={
            "node2": HostUnreachable("no route to host", hint="look", host="node2"),
            "node3": HostNotReady("no Python", hint="install", host="node3"),
        },
    )
    found = replace(found, reports={"node1": found.reports["node1"]})
    judged = judge(found)
    assert bad(found) == {
        ("CRIT", "reachable", "node2", None),
        ("CRIT", "answers", "node3", None),
    }
    assert exit_status(judged) == 4
    assert bad_hosts(judged) == {
        "node2": "reachable: no route to host",
        "node3": "answers: no Python",
    }


def test_whom_to_keep_out() -> None:
    """Not hosts where a user's file is missing or a process runs; not for warnings."""
    table = ascend.npu_table(EIGHT, health={6: "Alarm"}, processes={1: (77, "python", 900)})
    found = judge(survey(report(1), report(2, {"npu-smi info": table}), report(3, cann="6.3")))
    assert bad_hosts(found) == {
        "node2": "npu-health device 6: health Alarm",
        "node3": "cann: 2 hosts CANN 7.0.RC1, node3: 6.3",
    }


def test_of_two_hosts_with_one_name_none_is_the_bad_one() -> None:
    found = judge(survey(report(1), report(2, hostname="NODE1")))
    assert bad_hosts(found) == {}
    assert {f.host for f in found if f.status == "CRIT"} == {"node1", "node2"}


# What must be the same


def compared(values: dict[str, str]) -> list[tuple[str, str, str]]:
    places = {(name, None): value for name, value in values.items()}
    found = differences(CANN, "CANN", places, noun="host", status="CRIT")
    return [(f.status, f.host, f.evidence) for f in found]


def test_the_odd_one_out_is_named() -> None:
    values = {f"node{n}": "7.0.RC1" for n in range(11)}
    text = "11 hosts CANN 7.0.RC1, 192.168.0.7: 6.3.RC2"
    assert compared({**values, "192.168.0.7": "6.3.RC2"}) == [("CRIT", "192.168.0.7", text)]
    assert compared(values) == [("OK", "", "CANN 7.0.RC1")]


def test_without_a_majority_it_is_nobodys() -> None:
    text = "CANN differs: a: 6.3, b: 7.0"
    assert compared({"a": "6.3", "b": "7.0"}) == [("CRIT", "", text)]


def test_what_is_unknown_is_never_ok() -> None:
    assert compared({"a": UNKNOWN, "b": UNKNOWN}) == [("WARN", "", "no host says its CANN")]
    assert compared({"a": "7.0", "b": "7.0", "c": UNKNOWN})[0][:2] == ("WARN", "c")
    assert compared({"a": "7.0", "b": UNKNOWN})[0][:2] == ("WARN", "")


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["1", "2", "3"]), min_size=1))
def test_only_agreement_is_ok(values: dict[str, str]) -> None:
    found = compared(values)
    assert ({status for status, _, _ in found} == {"OK"}) == (len(set(values.values())) == 1)
    named = {name for _, name, _ in found if name}
    if named:  # the others are the majority
        (usual,) = {value for name, value in values.items() if name not in named}
        assert all(values[name] != usual for name in named)


# Clocks


def exchange(skew: float, way: float = 0.1, work: float = 2.0) -> Exchange:
    """A host whose clock is ahead by ``skew`` and whose answer is ``way`` seconds on its way."""
    return Exchange(1000.0, 1000.0 + way + work, Clock(1000.0 + way / 2 + skew, 50.0, 50.0 + work))


def skews(*exchanges: Exchange) -> list[str]:
    found = clock_findings({str(number): one for number, one in enumerate(exchanges)})
    return [finding.status for finding in found]


def test_clocks() -> None:
    assert skews(exchange(0), exchange(0), exchange(0)) == ["OK", "OK", "OK"]
    assert skews(exchange(0), exchange(3), exchange(-70)) == ["OK", "WARN", "CRIT"]
    # Of two hosts the controller tells which is wrong.
    assert skews(exchange(0), exchange(5)) == ["OK", "WARN"]
    # All hosts agree and only the controller is off.
    assert skews(exchange(9), exchange(9), exchange(9)) == ["OK", "OK", "OK"]


@given(st.floats(-0.5, 0.5), st.floats(0.0, 30.0))
def test_a_slow_answer_is_no_skew(skew: float, way: float) -> None:
    """However long it was on its way, a clock that is right is never called wrong."""
    late = exchange(skew, way=way)
    assert skews(exchange(0), exchange(0), exchange(0), late)[-1] == "OK"


# Answers that are none

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_GOOD = {
    "schema": 1,
    "start": {"wall": 1.0, "mono": 1.0},
    "end": {"wall": 2.0, "mono": 2.0},
    "facts": {"schema": 1},
    "commands": [{"argv": ["npu-smi", "info"], "status": 0, "output": "", "error": ""}],
    "run_ids": {"7": "run"},
    "ports": {"60000": None, "60001": {"pid": 3, "command": "x"}},
    "peers": [None, "No route to host"],
    "names": {"hostname": "n", "addresses": ["::1"], "error": None},
    "shm": {"free_bytes": 1, "total_bytes": 2},
    "open_files": [1024, 4096],
    "code": {"path": "/x", "sha256": "00"},
    "files": [{"path": "/a", "missing": True, "error": "none"}],
}


def test_a_good_answer() -> None:
    read = parse_report(_GOOD, host="node1")
    assert read.ports_taken == {60000: "", 60001: "x (pid 3)"}
    assert (read.run_ids, read.open_files, read.code) == ({7: "run"}, 1024, "00")
    assert read.files["/a"].missing


@pytest.mark.parametrize("key", sorted(_GOOD))
def test_an_answer_without_a_part(key: str) -> None:
    answer = {name: value for name, value in _GOOD.items() if name != key}
    with pytest.raises(HostNotReady, match="node1") as caught:
        parse_report(answer, host="node1")
    assert caught.value.hint


@given(st.sampled_from(sorted(_GOOD)), _JSON)
def test_any_answer_is_read_or_refused(key: str, value: Any) -> None:
    with suppress(HostNotReady):
        parse_report({**_GOOD, key: value}, host="node1")
