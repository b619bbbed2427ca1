"""Rank tables: dictionary order, conflicts, and laws of the merge."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RankTableError
from orchestrator.planning.ranktable import RankTable, host_table, merge


def table(server_id: str, number: int, devices: int = 2) -> RankTable:
    ips = {device: f"10.{device}.{number // 256}.{number % 256}" for device in range(devices)}
    return host_table(server_id, ips)


def test_ranks_follow_the_dictionary_order_of_server_id():
    merged = merge([table("10.0.0.2", 2), table("10.0.0.10", 10), table("10.0.0.1", 1)])
    assert [server.server_id for server in merged.servers] == ["10.0.0.1", "10.0.0.10", "10.0.0.2"]
    assert [d.rank_id for server in merged.servers for d in server.devices] == list(range(6))


def test_every_scalar_of_the_file_is_a_string():
    data = json.loads(merge([table("b", 2), table("a", 1)]).to_json())
    assert (data["version"], data["server_count"], data["status"]) == ("1.0", "2", "completed")
    for server in data["server_list"]:
        for device in server["device"]:
            assert all(isinstance(value, str) for value in device.values())


def test_one_server_needs_no_device_ips():
    alone = merge([host_table("a", {0: None, 1: None})])
    assert "device_ip" not in alone.to_json() or '"device_ip": ""' not in alone.to_json()
    with pytest.raises(RankTableError):
        merge([host_table("a", {0: None}), table("b", 2, devices=1)])


@pytest.mark.parametrize(
    "ips",
    [{0: "10.0.0.1", 1: "10.0.0.1"}, {0: "-.-.-.-"}, {0: "192.1.*.6"}, {0: ""}, {0: "a\nb"}],
)
def test_bad_device_ips(ips):
    with pytest.raises(RankTableError):
        merge([host_table("a", ips), table("z", 9, devices=len(ips))])


def test_all_conflicts_are_reported_at_once():
    with pytest.raises(RankTableError) as caught:
        merge([table("a", 1), table("b", 1), table("c", 3, devices=1), table("d", 3, devices=1)])
    text = str(caught.value)
    assert "10.0.0.1" in text
    assert "10.0.0.3" in text


def test_the_same_server_with_other_devices():
    with pytest.raises(RankTableError, match="different devices"):
        merge([table("a", 1), table("a", 2)])


def with_further(table: RankTable, *extra: tuple[str, str]) -> RankTable:
    return RankTable(tuple(replace(server, extra=extra) for server in table.servers))


def test_further_keys_of_a_server_are_part_of_what_it_says():
    plain = with_further(table("a", 1), ("host_ip", "10.1.1.1"), ("container_ip", "10.2.2.2"))
    other = with_further(table("a", 1), ("container_ip", "10.2.2.2"), ("host_ip", "10.1.1.1"))
    assert merge([plain, other]).to_json() == merge([other, plain]).to_json()
    reserved = with_further(table("a", 1), ("host_nic_ip", "reserve"))
    assert merge([reserved, table("a", 1)]).to_json() == table("a", 1).to_json()
    with pytest.raises(RankTableError, match="with different container_ip, host_ip"):
        merge([plain, table("a", 1)])
    (server,) = table("a", 1).servers
    ported = replace(server.devices[0], extra=(("device_port", "16667"),))
    moved = RankTable((replace(server, devices=(ported, *server.devices[1:])),))
    with pytest.raises(RankTableError, match="with different device_port"):
        merge([moved, table("a", 1)])


def test_comma_lists_of_device_ips():
    def listing(number: int, text: str) -> RankTable:
        return host_table(f"h{number}", {0: text})

    merge([listing(1, "10.0.0.1,10.0.1.1"), listing(2, "10.0.0.2,10.0.1.2")])
    for second, said in (
        ("10.0.0.2,10.0.1.1", "device_ip 10.0.1.1 is used twice"),
        ("10.0.0.2", "different numbers of addresses: 1 for device 0 of h2, 2 for device 0 of h1"),
        ("10.0.0.2,", "not an IP address"),
    ):
        with pytest.raises(RankTableError, match=said):
            merge([listing(1, "10.0.0.1,10.0.1.1"), listing(2, second)])


def test_a_table_is_written_as_the_guide_shows_it():
    text = host_table("10.0.0.1", {1: "192.2.27.6", 0: "192.1.27.6"}).to_json()
    assert text == (
        "{\n"
        '    "version": "1.0",\n'
        '    "server_count": "1",\n'
        '    "server_list": [\n'
        "        {\n"
        '            "server_id": "10.0.0.1",\n'
        '            "device": [\n'
        '                {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"},\n'
        '                {"device_id": "1", "device_ip": "192.2.27.6", "rank_id": "1"}\n'
        "            ],\n"
        '            "host_nic_ip": "reserve"\n'
        "        }\n"
        "    ],\n"
        '    "status": "completed"\n'
        "}\n"
    )


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([], "no server"),
        ([table("a", 1), host_table("b", {0: None, 1: "10.9.0.1"})], "b has no device_ip for dev"),
        ([table("a", 1), table("b", 1)], "device_ip 10.0.0.1 is used twice, by device 0 of a and"),
        ([table("a", 1), table("b", 2, 4)], "different numbers of devices: 2 on a; 4 on b"),
        (
            [table("a", 1), host_table("b", {0: "fd00::1", 1: "fd00::2"})],
            "IPv4 for device 0 of a, IPv6 for device 0 of b",
        ),
        ([host_table("a", {0: "fd00::1"}), host_table("b", {0: "fd00:0::1"})], "used twice"),
    ],
)
def test_conflicts_name_both_sides(tables, said):
    with pytest.raises(RankTableError) as caught:
        merge(tables)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("server_id", "ips", "said"),
    [("x" * 65, {0: "10.0.0.1"}, "65 characters"), ("", {0: "10.0.0.1"}, "0 characters")],
)
def test_a_bad_server_id(server_id, ips, said):
    with pytest.raises(RankTableError, match=said):
        host_table(server_id, ips)


def test_a_server_without_devices():
    with pytest.raises(RankTableError, match="no device"):
        host_table("a", {})


clusters = st.lists(
    st.text("abc0123456789.", min_size=1, max_size=12), min_size=1, max_size=8, unique=True
).map(lambda names: [table(name, number) for number, name in enumerate(names)])


@given(clusters, st.randoms())
def test_merge_is_independent_of_order_and_idempotent(tables, random):
    shuffled = list(tables)
    random.shuffle(shuffled)
    merged = merge(tables)
    assert merge(shuffled).to_json() == merged.to_json()
    assert merge([merged]).to_json() == merged.to_json()
    assert merge([merged, *shuffled]).to_json() == merged.to_json()
