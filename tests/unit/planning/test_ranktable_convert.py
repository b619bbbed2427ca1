"""Rank tables from form to form, and merged from files."""

from __future__ import annotations

import contextlib
import json
from typing import Any, List, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import RankTableError
from orchestrator.planning.ranktable import RankTable, host_table, merge
from orchestrator.planning.ranktable_convert import (
    FORMS,
    ORDERS,
    convert,
    merge_files,
    proven,
    usable,
)
from orchestrator.planning.ranktable_lint import CheckedTable, check_table
from tests.unit.planning.test_ranktable_lint import documents, group_list
from tests.unit.planning.test_ranktable_lint import table as content_of


def table(number: int, devices: int = 2) -> RankTable:
    return host_table(f"10.0.0.{number}", {d: f"10.{d}.0.{number}" for d in range(devices)})


def checked(content: Any, name: str = "t.json") -> CheckedTable:
    text = content if isinstance(content, str) else json.dumps(content)
    return check_table(text.encode(), name)


def file(*numbers: int, name: Optional[str] = None) -> CheckedTable:
    text = merge([table(number) for number in numbers]).to_json()
    return checked(text, name or f"hccl_{'_'.join(map(str, numbers))}.json")


def server_ids(text: str) -> List[str]:
    return [server["server_id"] for server in json.loads(text)["server_list"]]


def test_files_are_merged_in_dictionary_order_whatever_theirs():
    expected = merge([table(2), table(9), table(10)]).to_json()
    assert merge_files([file(9), file(10), file(2)]).to_json() == expected
    assert merge_files([file(2, 9), file(10)]).to_json() == expected
    assert server_ids(expected) == ["10.0.0.10", "10.0.0.2", "10.0.0.9"]


@pytest.mark.parametrize(
    "inputs", [[(1,), (2,), (1, 2)], [(1, 2), (1,)], [(1, 2), (2, 3)], [(1, 2), (1, 2)]]
)
def test_the_output_of_an_earlier_merge_is_refused(inputs):
    with pytest.raises(RankTableError, match=r"hccl_1_2\.json is the output of an earlier merge"):
        merge_files([file(*numbers) for numbers in inputs])


def test_conflicts_between_files_name_them():
    stolen = checked(host_table("10.0.0.3", {0: "10.0.0.1", 1: "10.9.9.9"}).to_json(), "b.json")
    with pytest.raises(RankTableError, match=r"10\.0\.0\.1 is used twice.*hccl_1.json.*b.json"):
        merge_files([file(1), stolen])


def test_errors_in_files_are_all_reported_with_their_places():
    bad = content_of(1)
    bad["status"] = "initializing"
    bad["server_list"][0]["device"][0]["device_ip"] = "192.1.*.6"
    with pytest.raises(RankTableError) as caught:
        merge_files([checked(bad, "bad.json"), checked("{", "worse.json")])
    assert "bad.json:1:" in str(caught.value)
    assert "RT014" in str(caught.value)
    assert "RT031" in str(caught.value)
    assert "worse.json" in str(caught.value)


def test_super_pods_are_not_lost_in_silence():
    with pytest.raises(RankTableError, match="super pods a merge would lose"):
        merge_files([checked(content_of(version="1.2")), file(9)])


def test_a_group_list_becomes_1_0():
    converted = convert(checked(group_list()), "1.0")
    assert server_ids(converted) == ["10.0.0.0", "10.0.0.1"]
    assert checked(converted).findings == ()


def test_pods_may_give_the_order():
    content = group_list()
    instances = content["group_list"][0]["instance_list"]
    instances[0]["pod_name"], instances[1]["pod_name"] = "job-1", "job-0"
    assert server_ids(convert(checked(content), "1.0")) == ["10.0.0.0", "10.0.0.1"]
    assert server_ids(convert(checked(content), "1.0", "pod")) == ["10.0.0.1", "10.0.0.0"]
    instances[0]["pod_name"] = "nameless"
    with pytest.raises(RankTableError, match="no number at its end"):
        convert(checked(content), "1.0", "pod")


def test_stated_ranks_are_kept_unless_an_order_is_given():
    content = content_of()
    content["server_list"].reverse()
    content["server_list"][0]["server_id"] = "0"  # ranks 8 to 15, though first in the dictionary
    kept = convert(checked(content), "1.0")
    assert server_ids(kept) == ["10.0.0.0", "0"]
    assert server_ids(convert(checked(content), "1.0", "server_id")) == ["0", "10.0.0.0"]


def test_ranks_against_the_order_of_devices():
    content = content_of(1, 2)
    devices = content["server_list"][0]["device"]
    devices[0]["rank_id"], devices[1]["rank_id"] = "1", "0"
    assert [
        d["device_id"]
        for d in json.loads(convert(checked(content), "1.0"))["server_list"][0]["device"]
    ] == ["1", "0"]
    with pytest.raises(RankTableError, match="a group_list cannot say"):
        convert(checked(content), "group_list")
    lab = convert(checked(content), "lab")
    assert convert(checked(lab), "1.0") == convert(checked(content), "1.0")


@given(st.sets(st.integers(0, 255), min_size=1, max_size=5), st.sampled_from([1, 2, 8]))
def test_there_and_back(numbers, devices):
    text = merge([table(number, devices) for number in numbers]).to_json()
    for form, order in (("group_list", "pod"), ("lab", None)):
        other = convert(checked(text), form)
        assert not [f for f in checked(other).findings if f.is_error]
        assert convert(checked(other), "1.0", order) == text


def test_1_2_and_1_0():
    content = content_of(version="1.2")
    plain = convert(checked(content), "1.0")
    assert "super" not in plain
    assert checked(plain).findings == ()
    with pytest.raises(RankTableError) as caught:
        convert(checked(plain), "1.2")
    assert "lists no super pods" in str(caught.value)
    assert "has no super_device_id" in str(caught.value)
    content["version"] = "1.0"  # with what 1.2 needs
    made = convert(checked(content), "1.2")
    assert json.loads(made)["super_pod_list"] == content["super_pod_list"]
    assert checked(made).findings == ()


WAYS = [("1.0", None), ("lab", None), ("group_list", "pod"), ("1.2", None)]


@pytest.mark.parametrize("there", WAYS)
@pytest.mark.parametrize("through", WAYS)
def test_every_form_from_every_form(there, through):
    """A form that cannot say something loses it, and nothing else."""
    source = checked(content_of(version="1.2"))
    form, order = through
    middle = checked(convert(source, form))
    assert not middle.errors
    if there[0] == "1.2" and form != "1.2":
        with pytest.raises(RankTableError, match="lists no super pods"):
            convert(middle, *there)
        return
    last = checked(convert(middle, there[0], None if there[0] == "1.2" else order))
    assert not last.errors
    assert convert(last, "1.0", there[1]) == convert(source, "1.0")


CLEAN = [content_of(), content_of(1), content_of(2, 16), content_of(2, 2, "1.2"), group_list()]
clean = st.sampled_from([*CLEAN, json.loads(convert(file(1, 9), "lab"))])


@settings(max_examples=150)
@given(clean, st.data())
def test_what_check_lets_pass_is_converted_and_merged_without_an_error(content, data):
    content = json.loads(json.dumps(content))
    holder, key = data.draw(st.sampled_from(places(content)))
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(documents | st.sampled_from(["0", "9", "10.0.0.77", "a"]))
    spoilt = checked(content)
    for form in FORMS:
        for order in (None, *ORDERS):
            with contextlib.suppress(RankTableError):
                assert checked(convert(spoilt, form, order)).errors == 0
    with contextlib.suppress(RankTableError):
        proven(merge_files([spoilt]), "t.json")


def places(value: Any) -> List[Any]:
    """Every member and item in a JSON value, as (holder, key)."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    inside = [value[key] for key in keys if isinstance(value[key], (dict, list))]
    return [*((value, key) for key in keys), *(place for item in inside for place in places(item))]


def test_devices_that_only_a_super_pod_has_are_not_converted_in_silence():
    content = content_of(version="1.2")
    content["server_list"][0]["device"][1]["device_id"] = "9"
    assert checked(content).errors == 0
    for form in ("1.0", "lab", "group_list"):
        with pytest.raises(RankTableError, match="RT040 `device_id` 9 does not exist"):
            convert(checked(content), form)


def test_further_keys_are_kept():
    content = content_of(1, 1)
    content["server_list"][0].update(host_ip="10.1.1.1", container_ip="10.2.2.2")
    content["server_list"][0]["device"][0]["device_port"] = "16666"
    kept = json.loads(convert(checked(content), "1.0"))["server_list"][0]
    assert kept["host_ip"] == "10.1.1.1"
    assert kept["container_ip"] == "10.2.2.2"
    assert kept["device"][0]["device_port"] == "16666"
    merged = merge_files([checked(content)])
    assert '"host_ip": "10.1.1.1"' in merged.to_json()


def test_what_cannot_be_used():
    with pytest.raises(RankTableError, match=r"version 2\.0, which cannot be used"):
        usable(checked({"version": "2.0", "status": "completed"}))
