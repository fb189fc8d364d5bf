from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.domain.rank_table import (
    RankTable,
    merge_rank_tables,
    merged_file_name,
    parse_rank_table,
)
from glm3sdk.domain.rank_table_generation import (
    device_range,
    generate_rank_table,
    generated_file_name,
    parse_hccn_conf,
    parse_hccn_tool,
    visible_devices,
)
from glm3sdk.errors import InvalidRankTableError


def server(number: int, devices: int = 2, first: int = 0) -> dict[str, Any]:
    return {
        "server_id": f"10.0.0.{number}",
        "device": [
            {
                "device_id": str(device),
                "device_ip": f"192.168.{number}.{device}",
                "rank_id": str(first + device),
            }
            for device in range(devices)
        ],
        "host_nic_ip": "reserve",
    }


def table(*servers: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": list(servers),
        "status": "completed",
    }


def parse(values: Any) -> RankTable:
    return parse_rank_table(values, source="hccl.json")


def refuse(values: Any, words: str) -> None:
    with pytest.raises(InvalidRankTableError, match=words) as raised:
        parse(values)
    assert str(raised.value).startswith("hccl.json: ")
    assert "\n" not in str(raised.value)


def test_a_table_comes_back_as_it_was() -> None:
    values = table(server(1), server(2, first=2))
    parsed = parse(values)
    assert parsed.to_json() == values
    assert parsed.rank_size == 4
    found, device = parsed.find(3)
    assert (found.server_id, device.device_id, device.device_ip) == ("10.0.0.2", 1, "192.168.2.1")
    with pytest.raises(InvalidRankTableError, match="no rank 4"):
        parsed.find(4)


def test_what_a_later_version_adds_is_passed_through() -> None:
    values = table(server(1))
    values["version"] = "1.2"
    values["super_pod_list"] = [{"super_pod_id": "0", "server_list": [{"server_id": "10.0.0.1"}]}]
    for device in values["server_list"][0]["device"]:
        device["super_device_id"] = "8388608"
    assert parse(values).to_json() == values


def instance(pod: str, server_id: str, *devices: int) -> dict[str, Any]:
    return {
        "devices": [{"device_id": str(d), "device_ip": f"192.168.9.{d}"} for d in devices],
        "pod_name": pod,
        "server_id": server_id,
    }


def group(*instances: dict[str, Any]) -> dict[str, Any]:
    return {
        "group_count": "1",
        "group_list": [{"group_name": "job", "instance_list": list(instances)}],
        "status": "completed",
    }


def ranks(parsed: RankTable) -> dict[str, list[tuple[int, int]]]:
    return {
        s.server_id: [(device.device_id, device.rank_id) for device in s.devices]
        for s in parsed.servers
    }


def test_pods_are_ranked_by_the_number_that_their_names_end_in() -> None:
    values = group(instance("w-10", "10.0.0.1", 5, 4), instance("w-9", "10.0.0.2", 7, 6))
    parsed = parse(values)
    assert parsed.version == "1.0"
    assert ranks(parsed) == {"10.0.0.2": [(7, 0), (6, 1)], "10.0.0.1": [(5, 2), (4, 3)]}


def test_pods_without_such_a_number_keep_the_order_of_the_file() -> None:
    values = group(instance("w-10", "10.0.0.1", 0), instance("another", "10.0.0.2", 1))
    assert ranks(parse(values)) == {"10.0.0.1": [(0, 0)], "10.0.0.2": [(1, 1)]}


def test_two_pods_of_one_server_are_one_server() -> None:
    values = group(instance("w-1", "10.0.0.1", 0), instance("w-2", "10.0.0.1", 1))
    assert ranks(parse(values)) == {"10.0.0.1": [(0, 0), (1, 1)]}


def test_a_table_that_is_still_written_is_not_checked_yet() -> None:
    assert parse({"group_list": [], "status": "initializing"}).status == "initializing"
    refuse({"group_list": [], "status": "completed"}, "names no device")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["server_list", 0, "server_id"], "xx.xx.xx.xx", r"server_list\[0\].server_id: .*masked"),
        (["server_list", 1, "server_id"], "10.0.0.1", "server_id 10.0.0.1 is there twice"),
        (["server_list", 1, "device", 0, "device_ip"], "192.168.1.0", "device_ip .* twice"),
        (["server_list", 0, "device", 1, "device_id"], "0", "device_id of server .* 0 is there"),
        (["server_list", 0, "device", 1, "device_id"], "zero", r"device\[1\].device_id: must be"),
        (["server_list", 0, "device", 1, "rank_id"], "0", "rank_id 0 is there twice"),
        (["server_list", 0, "device", 1, "rank_id"], "9", "rank_id 1 is missing"),
        (["server_list", 0, "device", 1, "rank_id"], "-1", "must be a number from 0"),
        (["server_list", 0, "device", 1, "rank_id"], True, "must be a number from 0"),
        (["server_list", 0, "device", 0, "device_ip"], "1.2.3", r"device\[0\].device_ip: .*IP"),
        (["server_list", 0, "device", 0, "device_ip"], None, "device_ip: must be a text"),
        (["server_list", 0, "device"], "all", r"server_list\[0\].device: must be a list"),
        (["server_list", 0], 7, r"server_list\[0\]: must be an object"),
        (["server_list"], {}, "server_list: must be a list"),
        (["server_count"], "3", "server_count: is 3 and server_list has 2"),
        (["version"], 1.0, "version: must be a text"),
    ],
)
def test_an_error_names_the_file_and_the_field(path: list[Any], value: Any, words: str) -> None:
    values = copy.deepcopy(table(server(1), server(2, first=2)))
    target: Any = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    refuse(values, words)


def test_an_address_written_another_way_is_the_same_address() -> None:
    one = server(1)
    one["device"][0]["device_ip"], one["device"][1]["device_ip"] = "fe80::1", "fe80:0::0:1"
    refuse(table(one), "device_ip fe80::1 is there twice")


@pytest.mark.parametrize("values", [[], None, "text", {}, {"version": "1.0"}])
def test_what_is_no_table_is_refused(values: Any) -> None:
    refuse(values, "object|neither server_list nor group_list")


_KEYS = [
    *("server_list", "group_list", "instance_list", "device", "devices", "server_id"),
    *("device_id", "device_ip", "rank_id", "pod_name", "status", "version"),
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_any_json_is_read_or_refused_with_a_typed_error(values: Any) -> None:
    try:
        parsed = parse(values)
    except InvalidRankTableError:
        return
    assert parse(parsed.to_json()).rank_size == parsed.rank_size


def test_merging_counts_the_ranks_on_in_the_order_given() -> None:
    tables = [("b.json", parse(table(server(2)))), ("a.json", parse(table(server(1, devices=3))))]
    merged = merge_rank_tables(tables)
    assert ranks(merged) == {
        "10.0.0.2": [(0, 0), (1, 1)],
        "10.0.0.1": [(0, 2), (1, 3), (2, 4)],
    }
    assert merged_file_name(merged) == "hccl_2s_5p.json"
    assert parse(merged.to_json()) == merged


def test_merging_refuses_what_would_give_a_wrong_table() -> None:
    one, two = parse(table(server(1))), parse(table(server(1), server(2, first=2)))
    other = parse({**table(server(3)), "version": "1.2"})
    for tables, words in [
        ([], "no rank table"),
        ([("one", one), ("two", two)], "two: server_list: has 2 servers, so it was merged"),
        ([("one", one), ("again", one)], r"one \+ again: server_id 10.0.0.1 is there twice"),
        ([("one", one), ("other", other)], "other: version"),
    ]:
        with pytest.raises(InvalidRankTableError, match=words):
            merge_rank_tables(tables)


@pytest.mark.parametrize(
    ("text", "per_node", "expected"),
    [
        ("[0,8)", 8, range(8)),
        ("[0,8]", 8, range(8)),
        (" [ 4 , 8 ) ", 8, range(4, 8)),
        ("[0,4)", 8, range(4)),
        ("[0,16)", 16, range(16)),
        ("[8,12)", 16, range(8, 12)),
    ],
)
def test_a_range_of_devices_is_half_open(text: str, per_node: int, expected: range) -> None:
    assert device_range(text, per_node=per_node) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8", "is not a range"),
        ("[0;8)", "is not a range"),
        ("[4,4)", "0 <= first < last <= 8"),
        ("[5,2)", "0 <= first < last <= 8"),
        ("[0,9)", "0 <= first < last <= 8"),
        ("[-1,2)", "is not a range"),
        ("[2,6)", "crosses device 4"),
        ("[0,5)", "crosses device 4"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidRankTableError, match=words):
        device_range(text, per_node=8)


def test_a_renumbered_device_has_the_address_of_its_own_number() -> None:
    device_ids = visible_devices("6,7", range(2))
    generated = generate_rank_table(
        server_id="127.0.0.1",
        device_ids=device_ids,
        addresses={6: "192.168.0.6", 7: "121::107"},
        source="hccn.conf",
    )
    (found,) = generated.servers
    assert [(d.device_id, d.device_ip, d.rank_id) for d in found.devices] == [
        (6, "192.168.0.6", 0),
        (7, "121::107", 1),
    ]
    assert generated_file_name(range(2), "127.0.0.1") == "hccl_2p_01_127.0.0.1.json"


@pytest.mark.parametrize("text", ["6", "6,x", "6,6", "", "6,-7"])
def test_visible_devices_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(InvalidRankTableError, match="visible_devices"):
        visible_devices(text, range(2))


def test_a_device_without_an_address_is_named() -> None:
    def generate(addresses: dict[int, str], server_id: str = "10.0.0.1") -> None:
        generate_rank_table(
            server_id=server_id, device_ids=[0, 1], addresses=addresses, source="hccn.conf"
        )

    with pytest.raises(InvalidRankTableError, match=r"no address of device 1 \(there are: 0\)"):
        generate({0: "10.1.1.1"})
    with pytest.raises(InvalidRankTableError, match=r"device 1: '10\.xx\.xx\.10' .* masked"):
        generate({0: "10.1.1.1", 1: "10.xx.xx.10"})
    with pytest.raises(InvalidRankTableError, match="pass --server_ip"):
        generate({0: "10.1.1.1", 1: "10.1.1.2"}, "host")
    with pytest.raises(InvalidRankTableError, match=r"device_ip 10\.1\.1\.1 is there twice"):
        generate({0: "10.1.1.1", 1: "10.1.1.1"})


def test_hccn_conf_is_read_whatever_the_order_of_its_lines() -> None:
    text = "netmask_0=255.255.255.0\naddress_0=1.2.3.4\n\nIPv6address_1=121::101\n# address_2=x\n"
    assert parse_hccn_conf(text) == {0: "1.2.3.4", 1: "121::101"}
    assert parse_hccn_conf("IPv6address_0=::1\naddress_0=1.2.3.4\nIPv6address_0=::2\n") == {
        0: "1.2.3.4"
    }


def test_an_ipv6_answer_of_hccn_tool_keeps_its_colons() -> None:
    assert parse_hccn_tool("hccn_tool -i 0 -ip -g\nipaddr:2001:db8::1\nnetmask:64\n") == (
        "2001:db8::1"
    )
    assert parse_hccn_tool("command not found: hccn_tool") is None
    assert parse_hccn_tool("ipaddr:\n") is None
