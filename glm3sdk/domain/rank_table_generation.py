"""A rank table for one server, from the devices that its user names.

Options and file names are those of the reference's hccl_tools; unlike it, an address is looked
up by the device's own number also where the visible devices are renumbered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from glm3sdk.domain.rank_table import (
    RankedDevice,
    RankedServer,
    RankTable,
    check_rank_table,
    checked_address,
)
from glm3sdk.errors import InvalidRankTableError

_RANGE = re.compile(r"\s*\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*[)\]]\s*")
_CONF_LINE = re.compile(r"(?:IPv6)?address_(\d{1,4})\s*=\s*(\S+)\s*")
# Up to this device and from it on, a server's cards hang on different rings.
_RING = 4
_WHOLE_SERVERS = (8, 16)


def device_range(text: str, *, per_node: int) -> range:
    """The devices of a range such as "[0,8)"; "[0,8]" means the same, as in the reference.

    Args:
        text: the range, half-open.
        per_node: devices of the server.

    Raises:
        InvalidRankTableError: not a range, outside the server, or across its two rings.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidRankTableError(
            f"device_num {text!r} is not a range of devices; write it as '[0,8)'"
        )
    first, last = int(match[1]), int(match[2])
    if not first < last <= per_node:
        raise InvalidRankTableError(
            f"device_num {text!r}: 0 <= first < last <= {per_node} must hold (the devices of a "
            "server, device_num_per_node)"
        )
    if first < _RING < last and not (first == 0 and last in _WHOLE_SERVERS):
        raise InvalidRankTableError(
            f"device_num {text!r} crosses device {_RING}, where a server's rings meet; take "
            f"devices of one ring, or all: '[0,8)' or '[0,16)'"
        )
    return range(first, last)


def visible_devices(text: str | None, devices: range) -> list[int]:
    """The numbers that devices have on their server, where only some are visible.

    Args:
        text: such as "4,5,6,7": the i-th is what device i is on the server; None renumbers
            nothing.
        devices: what was asked for.

    Raises:
        InvalidRankTableError: not a list of numbers, one is there twice, or too few.
    """
    if text is None:
        return list(devices)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRankTableError(
            f"visible_devices {text!r} is not a list of numbers; write it as '0,1,2,3'"
        )
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise InvalidRankTableError(f"visible_devices {text!r} names a device twice")
    if len(numbers) < devices.stop:
        raise InvalidRankTableError(
            f"visible_devices {text!r} names {len(numbers)} devices and device_num asks for "
            f"device {devices.stop - 1}; name more, or ask for less"
        )
    return [numbers[device] for device in devices]


def parse_hccn_conf(text: str) -> dict[int, str]:
    """Addresses by device from /etc/hccn.conf: lines `address_N=IP` and `IPv6address_N=IP`.

    A device's IPv4 address counts before its IPv6 address.
    """
    addresses: dict[int, str] = {}
    for line in text.splitlines():
        match = _CONF_LINE.fullmatch(line.strip())
        if match and (not line.strip().startswith("IPv6") or int(match[1]) not in addresses):
            addresses[int(match[1])] = match[2]
    return addresses


def parse_hccn_tool(text: str) -> str | None:
    """The address in the answer of `hccn_tool -i N -ip -g`, or None where there is none.

    The line is `ipaddr:ADDRESS`; it is split once, for an IPv6 address has colons too.
    """
    for line in text.splitlines():
        key, separator, value = line.strip().partition(":")
        if separator and key.strip() == "ipaddr" and value.strip():
            return value.strip()
    return None


def generate_rank_table(
    *, server_id: str, device_ids: Sequence[int], addresses: Mapping[int, str], source: str
) -> RankTable:
    """A table of one server, ranks in the order of the devices.

    Args:
        server_id: the server's address.
        device_ids: numbers on the server.
        addresses: by those numbers.
        source: where the addresses are from, for messages.

    Raises:
        InvalidRankTableError: a device has no address, or something is no address.
    """
    devices = []
    for rank_id, device_id in enumerate(device_ids):
        if device_id not in addresses:
            known = ", ".join(map(str, sorted(addresses))) or "none"
            raise InvalidRankTableError(
                f"{source}: no address of device {device_id} (there are: {known}); configure it "
                f"with hccn_tool -i {device_id} -ip -s, or pass --hccn_conf"
            )
        try:
            address = checked_address(addresses[device_id])
        except ValueError as exc:
            raise InvalidRankTableError(f"{source}: device {device_id}: {exc}") from exc
        devices.append(RankedDevice(device_id, address, rank_id))
    try:
        checked_address(server_id)
    except ValueError as exc:
        raise InvalidRankTableError(f"server_ip: {exc}; pass --server_ip ADDRESS") from exc
    server = RankedServer(server_id, tuple(devices), {"host_nic_ip": "reserve"})
    table = RankTable((server,))
    check_rank_table(table, source=source)
    return table


def generated_file_name(devices: range, server_id: str) -> str:
    """The reference's name for a server's file: hccl_8p_01234567_10.0.0.1.json."""
    return f"hccl_{len(devices)}p_{''.join(map(str, devices))}_{server_id}.json"
