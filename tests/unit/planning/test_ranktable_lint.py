"""The rank-table linter: a breach of every rule, and the right verdict on real tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.ranktable import host_table, merge
from orchestrator.planning.ranktable_convert import convert, usable
from orchestrator.planning.ranktable_forms import CHECKED
from orchestrator.planning.ranktable_lint import CheckedTable, check_table, unreadable
from orchestrator.planning.ranktable_rules import RULES
from tests.unit.planning.inputs import codes

ROOT = Path(__file__).parents[3]
TABLES = Path(os.environ.get("GLM2_SHARED", str(ROOT.parent / "shared"))) / "fixtures/rank_tables"


def check(content: Any, name: str = "t.json") -> CheckedTable:
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    return check_table(text.encode(), name)


def table(servers: int = 2, devices: int = 8, version: str = "1.0") -> Dict[str, Any]:
    """A clean table to be spoilt."""
    made: Dict[str, Any] = {
        "version": version,
        "server_count": str(servers),
        "server_list": [
            {
                "server_id": f"10.0.0.{s}",
                "device": [
                    {
                        "device_id": str(d),
                        "device_ip": f"192.{d % 4 + 1}.{d // 4}.{s}",
                        "rank_id": str(devices * s + d),
                    }
                    for d in range(devices)
                ],
            }
            for s in range(servers)
        ],
        "status": "completed",
    }
    if version == "1.2":
        for server in made["server_list"]:
            for device in server["device"]:
                device["super_device_id"] = device["rank_id"]
        names = [{"server_id": server["server_id"]} for server in made["server_list"]]
        made["super_pod_list"] = [{"super_pod_id": "0", "server_list": names}]
    return made


def group_list() -> Dict[str, Any]:
    def instance(number: int) -> Dict[str, Any]:
        devices = [{"device_id": str(d), "device_ip": f"192.1.{number}.{d}"} for d in range(8)]
        return {"pod_name": f"job-{number}", "server_id": f"10.0.0.{number}", "devices": devices}

    group = {
        "group_name": "g",
        "device_count": "16",
        "instance_count": "2",
        "instance_list": [instance(0), instance(1)],
    }
    return {"status": "completed", "group_count": "1", "group_list": [group]}


@pytest.mark.parametrize(
    "content", [table(), table(1), table(3, 1), table(2, 8, "1.2"), group_list()]
)
def test_clean_tables(content):
    checked = check(content)
    assert checked.findings == ()
    assert checked.servers == len(content.get("server_list", [0, 0]))


def server(content: Dict[str, Any], number: int = 1) -> Dict[str, Any]:
    return content["server_list"][number]


def device(content: Dict[str, Any], number: int = 1) -> Dict[str, Any]:
    return server(content)["device"][number]


def ranks(content: Dict[str, Any], order: List[int]) -> None:
    devices = [d for s in content["server_list"] for d in s["device"]]
    for item, rank in zip(devices, order):
        item["rank_id"] = str(rank)


def shift(content: Dict[str, Any], by: int, server: Optional[int] = None) -> None:
    """Other device ids, on one server or on all."""
    servers = content["server_list"]
    for item in servers if server is None else [servers[server]]:
        for entry in item["device"]:
            entry["device_id"] = str(int(entry["device_id"]) + by)


Spoil = Callable[[Dict[str, Any]], object]
SPOILT: List[Tuple[str, Spoil]] = [
    ("RT010", lambda t: t.update(version="3.0")),
    ("RT010", lambda t: t.pop("version")),
    ("RT011", lambda t: t.update(version="2.0")),
    ("RT011", lambda t: t.update(version="1.1")),
    ("RT012", lambda t: t.pop("server_list")),
    ("RT012", lambda t: server(t).pop("server_id")),
    ("RT012", lambda t: device(t).pop("rank_id")),
    ("RT013", lambda t: device(t).update(device_id=1)),
    ("RT013", lambda t: t.update(version=1.0)),
    ("RT013", lambda t: t.update(server_list={})),
    ("RT013", lambda t: server(t).update(device=[1])),
    ("RT013", lambda t: device(t).update(rank_id=None)),
    ("RT014", lambda t: t.update(status="initializing")),
    ("RT014", lambda t: t.pop("status")),
    ("RT015", lambda t: device(t).update(device_Ip="x")),
    ("RT015", lambda t: server(t).update(devices=[])),
    ("RT020", lambda t: t.update(server_count="3")),
    ("RT021", lambda t: server(t).update(server_id="")),
    ("RT021", lambda t: server(t).update(server_id="x" * 65)),
    ("RT022", lambda t: server(t).update(server_id="10.0.0.0")),
    ("RT023", lambda t: server(t, 0).update(server_id="9")),
    ("RT024", lambda t: server(t)["device"].pop()),
    ("RT025", lambda t: t.update(server_list=[], server_count="0")),
    ("RT025", lambda t: server(t).update(device=[])),
    ("RT026", lambda t: server(t).update(server_id="xx.xx.xx.xx")),
    ("RT026", lambda t: server(t).update(server_id="10.*.*.*")),
    ("RT030", lambda t: device(t).pop("device_ip")),
    ("RT031", lambda t: device(t).update(device_ip="")),
    ("RT031", lambda t: device(t).update(device_ip="192.1.*.6")),
    ("RT031", lambda t: device(t).update(device_ip="-.-.-.-")),
    ("RT031", lambda t: device(t).update(device_ip="192.168.1.300")),
    ("RT032", lambda t: device(t).update(device_ip="192.1.0.0")),
    ("RT033", lambda t: device(t).update(device_ip="fd00::1")),
    ("RT034", lambda t: device(t).update(device_ip="10.0.0.1,10.0.0.2")),
    ("RT035", lambda t: device(t).update(device_ip="127.0.0.1")),
    ("RT036", lambda t: device(t).update(device_ip="172.16.0.1")),
    ("RT040", lambda t: device(t).update(device_id="8")),
    ("RT040", lambda t: device(t).update(device_id="one")),
    ("RT040", lambda t: shift(t, 8, server=1)),  # ranks written as devices
    ("RT040", lambda t: shift(t, 1)),
    ("RT040", lambda t: shift(t, 16)),
    ("RT043", lambda t: shift(t, 8)),
    ("RT041", lambda t: device(t).update(device_id="0")),
    ("RT042", lambda t: [s.update(device=s["device"][2:6]) for s in t["server_list"]]),
    ("RT050", lambda t: device(t).update(rank_id="-1")),
    ("RT051", lambda t: device(t).update(rank_id="0")),
    ("RT052", lambda t: device(t).update(rank_id="16")),
    ("RT053", lambda t: ranks(t, [0, 1, 2, 3, 4, 5, 6, 8, 7, *range(9, 16)])),
    ("RT054", lambda t: ranks(t, [1, 0, *range(2, 16)])),
    ("RT060", lambda t: device(t).update(device_port="65536")),
    ("RT060", lambda t: server(t).update(host_port="x")),
    ("RT061", lambda t: server(t).update(host_ip="here")),
]


@pytest.mark.parametrize(("code", "spoil"), SPOILT)
def test_a_breach_of_each_rule_of_a_server_list(code, spoil):
    content = table()
    spoil(content)
    checked = check(content)
    assert code in codes(checked)
    found = next(finding for finding in checked.findings if finding.rule.code == code)
    assert found.location.file == "t.json"
    assert found.location.line >= 1
    assert found.message
    assert found.remedy


SPOILT_TEXT: List[Tuple[str, str]] = [
    ("RT001", "not json at all"),
    ("RT002", json.dumps(table()) + "# a comment"),
    ("RT003", json.dumps(table()).replace("}]}]", "}]}, ...]")),
    ("RT004", json.dumps(table())[1:]),
    ("RT004", json.dumps(table())[:-1]),
    ("RT005", json.dumps(table())[:-1] + ', "status": "completed"}'),
    ("RT013", "[]"),
]


@pytest.mark.parametrize(("code", "text"), SPOILT_TEXT)
def test_what_is_no_json_is_explained_and_the_rest_still_checked(code, text):
    checked = check(text)
    assert code in codes(checked)
    if code in ("RT002", "RT003", "RT004", "RT005"):
        assert codes(checked) == {code}
        assert checked.devices == 16


def super_pod(name: str, *servers: int) -> Dict[str, Any]:
    named = [{"server_id": f"10.0.0.{number}"} for number in servers]
    return {"super_pod_id": name, "server_list": named}


def lab() -> Dict[str, Any]:
    whole = check(table())
    made: Dict[str, Any] = json.loads(convert(whole, "lab"))
    return made


SPOILT_OTHERS: List[Tuple[str, Any, Spoil]] = [
    ("RT012", lab, lambda t: t["group_list"][0]["instance_list"][0].pop("rank_id")),
    ("RT051", lab, lambda t: t["group_list"][0]["instance_list"][0].update(rank_id="1")),
    ("RT070", lab, lambda t: t["group_list"][0].update(server_num="1")),
    ("RT070", group_list, lambda t: t.update(group_count="2")),
    ("RT070", group_list, lambda t: t["group_list"][0].update(device_count="8")),
    ("RT070", group_list, lambda t: t["group_list"][0].update(instance_count="1")),
    ("RT071", group_list, lambda t: t["group_list"][0]["instance_list"].reverse()),
    ("RT012", group_list, lambda t: t["group_list"][0]["instance_list"][0].pop("pod_name")),
    ("RT080", lambda: table(version="1.2"), lambda t: device(t).pop("super_device_id")),
    ("RT080", lambda: table(version="1.2"), lambda t: device(t).update(super_device_id="")),
    ("RT080", lambda: table(version="1.2"), lambda t: device(t).update(super_device_id="0")),
    ("RT081", lambda: table(version="1.2"), lambda t: t["super_pod_list"][0]["server_list"].pop()),
    (
        "RT081",
        lambda: table(version="1.2"),
        lambda t: t["super_pod_list"][0]["server_list"].append({"server_id": "x"}),
    ),
    (
        "RT081",
        lambda: table(version="1.2"),
        lambda t: t["super_pod_list"].append(t["super_pod_list"][0]),
    ),
    (
        "RT082",
        lambda: table(3, version="1.2"),
        lambda t: t.update(super_pod_list=[super_pod("0", 0, 2), super_pod("1", 1)]),
    ),
]


@pytest.mark.parametrize(("code", "make", "spoil"), SPOILT_OTHERS)
def test_a_breach_of_each_rule_of_other_forms(code, make, spoil):
    content = make()
    spoil(content)
    assert codes(check(content)) == {code}


def test_servers_with_sixteen_devices():
    whole = table(2, 16)
    assert codes(check(whole)) == {"RT043"}
    assert check(whole).errors == 0
    halves = table(2, 4)
    for item in halves["server_list"]:
        for entry, device_id in zip(item["device"], (0, 1, 8, 9)):
            entry["device_id"] = str(device_id)
    assert codes(check(halves)) == {"RT043"}
    halves["server_list"][0]["device"][3]["device_id"] = "10"  # not the same of both modules
    halves["server_list"][1]["device"][3]["device_id"] = "10"
    assert codes(check(halves)) == {"RT040"}
    pods = table(2, 16, "1.2")
    assert check(pods).findings == ()
    shift(pods, 1)
    assert codes(check(pods)) == {"RT040"}


def test_the_two_server_example_of_the_guide_has_both_its_faults():
    """As printed there: two servers of one name, and four addresses on both."""
    content = table()
    for number, item in enumerate(content["server_list"]):
        item["server_id"] = "xx.xx.xx.xx"
        for entry in item["device"]:
            device_id = int(entry["device_id"])
            entry["device_ip"] = f"192.168.{device_id % 4}.{device_id // 4 + number}"
    checked = check(content)
    errors = [finding for finding in checked.findings if finding.is_error]
    assert [finding.rule.code for finding in errors] == ["RT022"] + 4 * ["RT032"]
    assert "'xx.xx.xx.xx' is given again, first in line 6" in errors[0].message
    assert [finding.message.split()[1] for finding in errors[1:]] == [
        f"192.168.{n}.1" for n in range(4)
    ]


def test_names_and_missing_files():
    assert codes(check(table(), "table.txt")) == {"RT006"}
    assert codes(unreadable("t.json", "No such file")) == {"RT007"}
    assert "RT001" in codes(check_table(b'{"version": "\xff"}', "t.json"))
    wide = check_table(json.dumps(table()).encode("utf-16"), "t.json")
    assert (codes(wide), wide.devices) == ({"RT001"}, 16)


def test_every_rule_is_breached_by_a_test():
    tried = {code for code, *_ in (*SPOILT, *SPOILT_TEXT, *SPOILT_OTHERS)}
    assert tried | {"RT006", "RT007", "RT090", "RT091", "RT092"} == set(RULES)


def test_all_findings_at_once():
    content = table()
    content["status"] = "initializing"
    device(content)["device_ip"] = "192.1.0.0"
    server(content)["server_id"] = "10.0.0.0"
    assert {"RT014", "RT022", "RT032"} <= codes(check(content))


def test_every_place_of_a_rule_is_found():
    content = table()
    for number in (2, 5):
        device(content, number)["device_ip"] = f"10.0.{number}.1,10.0.{number}.2"
    ranks(content, [0, 1, 2, 3, 4, 5, 6, 8, 7, *range(9, 14), 20, 21])
    found = [(f.rule.code, f.message) for f in check(content).findings if f.is_error]
    assert found == [
        ("RT034", "2 addresses here, but 1 elsewhere"),
        ("RT034", "2 addresses here, but 1 elsewhere"),
        ("RT052", "`rank_id` 20 is beyond the 16 ranks, while 14 is missing"),
        ("RT052", "`rank_id` 21 is beyond the 16 ranks, while 15 is missing"),
    ]
    ranks(content, [0, 1, 2, 3, 4, 5, 6, 8, 7, *range(9, 16)])
    assert [f.rule.code for f in check(content).findings].count("RT053") == 2


def test_one_server_needs_no_device_ips():
    content = table(1)
    for item in content["server_list"][0]["device"]:
        item.pop("device_ip")
    assert check(content).findings == ()


def test_comma_lists_of_device_ips():
    content = table(2, 1)
    for number, item in enumerate(content["server_list"]):
        item["device"][0]["device_ip"] = f"10.0.0.{number},10.0.1.{number}"
    assert check(content).findings == ()


VERDICTS = {
    "deepseekv3_4x8_container_ip_dict_order_not_numeric.json": {},
    "group_list_8p_missing_open_brace_INVALID.json": {"RT004": 1},
    "hccl_doc_910_template1.json": {},
    "hccl_doc_910_template2_group_list.json": {},
    "hccl_doc_a3_v1.2_superpod_16p.json": {},
    "lab_form_16p_servers_unsorted.json": {"RT023": 1},
    "modelarts_v0_k8s_jobstart_hccl.json": {"RT071": 1},
    "ms_docs_16p.json": {"RT022": 1, "RT026": 2, "RT031": 16},
    "ms_docs_8p_masked.json": {"RT026": 1, "RT031": 8},
    "ms_st_msrun_4p_rearranged_rank_ids.json": {"RT026": 1, "RT031": 4, "RT054": 1},
    "seed_example_16p_DUP_IPS.json": {"RT022": 1, "RT026": 2, "RT032": 4},
    "seed_example_8p.json": {"RT026": 1},
}


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_verdicts_on_public_tables(name):
    path = TABLES / name
    if not path.exists():
        pytest.skip(f"no {name}: set GLM2_SHARED to the folder of the shared fixtures")
    checked = check_table(path.read_bytes(), name)
    found: Dict[str, int] = {}
    for finding in checked.findings:
        found[finding.rule.code] = found.get(finding.rule.code, 0) + 1
    assert found == VERDICTS[name]


@given(st.integers(1, 5), st.sampled_from([1, 2, 8]), st.data())
def test_what_is_generated_is_clean(servers, devices, data):
    names = data.draw(
        st.lists(st.from_regex(r"[a-z0-9.]{1,9}", fullmatch=True), min_size=servers, unique=True)
    )
    tables = [
        host_table(name, {d: f"10.{d % 4}.{n}.{d}" for d in range(devices)})
        for n, name in enumerate(names)
    ]
    checked = check(merge(tables).to_json())
    assert codes(checked) <= {"RT026"}  # a drawn name may look like a placeholder


keys = st.sampled_from(
    [
        "version status server_count server_list server_id device device_id device_ip rank_id",
        "group_list group_count instance_list devices pod_name deploy_mode super_pod_list",
        "super_pod_id super_device_id host_ip host_port device_count",
    ]
).flatmap(lambda words: st.sampled_from(words.split()))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["1.0", "1.2", "2.0", "lab", "completed", "0", "1", "10.0.0.1", "::1", ""])
    | st.text(max_size=5)
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5)
)


@settings(max_examples=300)
@given(documents)
def test_no_json_is_too_odd_to_check(document):
    checked = check(document)
    assert all(finding.rule.code in RULES for finding in checked.findings)


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.text().map(str.encode))
def test_no_bytes_are_too_odd_to_check(data):
    assert check_table(data, "t.json").name == "t.json"


@settings(max_examples=200)
@given(st.sampled_from([table(), group_list(), table(2, 2, "1.2")]), st.data())
def test_a_spoilt_table_is_checked(content, data):
    """One value anywhere in a good table is replaced by anything."""
    content = json.loads(json.dumps(content))
    at: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(documents)
            break
        at = at[key]
    checked = check(content)
    if not checked.errors and checked.form in CHECKED:
        assert usable(checked).world_size == checked.devices
