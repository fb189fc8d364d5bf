"""HCCL rank tables: which device of which server is which rank.

The format is that of Huawei's collective communication library, version "1.0": every value a
string. Templates of ModelArts and CCE ("v0.1": pods with devices, no rank_id) and the oldest
lab format (a device an instance, with rank_id) are read and become the same value. What a
later version adds, such as the super pods of "1.2", is kept as it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from glm3sdk.errors import InvalidRankTableError

VERSION = "1.0"
COMPLETED = "completed"
_TRAILING_NUMBER = re.compile(r"(\d+)$")
_NUMBER = re.compile(r"\d{1,9}")
# What this module understands; anything else is passed through.
_TABLE_KEYS = {"version", "server_count", "server_list", "status"}
_SERVER_KEYS = {"server_id", "device"}
_DEVICE_KEYS = {"device_id", "device_ip", "rank_id"}


@attrs.frozen
class RankedDevice:
    """One card.

    Attributes:
        device_id: its number on its server.
        device_ip: address of its network port.
        rank_id: its number in the job.
        more: further members, such as super_device_id, as they were.
    """

    device_id: int
    device_ip: str
    rank_id: int
    more: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class RankedServer:
    """One machine and its cards.

    Attributes:
        server_id: its address; a loopback address is legal.
        devices: in the order of the file.
        more: further members, such as host_nic_ip, as they were.
    """

    server_id: str
    devices: tuple[RankedDevice, ...]
    more: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class RankTable:
    """A job's devices, checked: no device, address or rank is there twice.

    Attributes:
        servers: in the order of the file.
        version: "1.0", or a later one that was passed through.
        status: "completed", or "initializing" while a platform still writes the table.
        more: further members, as they were.
    """

    servers: tuple[RankedServer, ...]
    version: str = VERSION
    status: str = COMPLETED
    more: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def rank_size(self) -> int:
        """Number of ranks."""
        return sum(len(server.devices) for server in self.servers)

    def find(self, rank_id: int) -> tuple[RankedServer, RankedDevice]:
        """The server and the device of a rank.

        Raises:
            InvalidRankTableError: there is no such rank.
        """
        for server in self.servers:
            for device in server.devices:
                if device.rank_id == rank_id:
                    return server, device
        raise InvalidRankTableError(
            f"no rank {rank_id} in a rank table of ranks 0 to {self.rank_size - 1}"
        )

    def to_json(self) -> dict[str, Any]:
        """The members of the version 1.0 file, every value a string."""
        return {
            "version": self.version,
            "server_count": str(len(self.servers)),
            "server_list": [
                {
                    "server_id": server.server_id,
                    "device": [
                        {
                            "device_id": str(device.device_id),
                            "device_ip": device.device_ip,
                            "rank_id": str(device.rank_id),
                            **device.more,
                        }
                        for device in server.devices
                    ],
                    **server.more,
                }
                for server in self.servers
            ],
            "status": self.status,
            **self.more,
        }


def parse_rank_table(values: Any, *, source: str) -> RankTable:
    """Read the members of a rank table of any format, and check it.

    Args:
        values: what the JSON file holds.
        source: the file's name, for messages.

    Raises:
        InvalidRankTableError: the message names the source and the field.
    """
    table = _Fields(values, source, "")
    if "server_list" in table.values:
        parsed = _parse_servers(table)
    elif "group_list" in table.values:
        parsed = _parse_groups(table)
    else:
        raise table.error("", "is no rank table: neither server_list nor group_list is there")
    # A platform publishes the file before the devices are known.
    if parsed.status == COMPLETED:
        check_rank_table(parsed, source=source)
    return parsed


def check_rank_table(table: RankTable, *, source: str) -> None:
    """Check that every device, address and rank of a table is there once.

    Raises:
        InvalidRankTableError: the message names the source and what is there twice or missing.
    """
    _refuse_twice(source, "server_id", (server.server_id for server in table.servers))
    devices = [device for server in table.servers for device in server.devices]
    if not devices:
        raise InvalidRankTableError(f"{source}: names no device; list at least one")
    _refuse_twice(source, "device_ip", (_canonical(device.device_ip) for device in devices))
    for server in table.servers:
        ids = (str(device.device_id) for device in server.devices)
        _refuse_twice(source, f"device_id of server {server.server_id}", ids)
    ranks = sorted(device.rank_id for device in devices)
    _refuse_twice(source, "rank_id", map(str, ranks))
    if ranks != list(range(len(ranks))):
        missing = next(rank for rank in range(len(ranks)) if rank not in ranks)
        raise InvalidRankTableError(
            f"{source}: rank_id {missing} is missing; {len(ranks)} devices need the ranks "
            f"0 to {len(ranks) - 1}"
        )


def merge_rank_tables(tables: Sequence[tuple[str, RankTable]]) -> RankTable:
    """One table of several servers' tables; ranks are counted on, in the order given.

    Args:
        tables: each with its file's name.

    Raises:
        InvalidRankTableError: none is given, one holds several servers (it was merged
            already), is not complete, or two have a server or an address in common.
    """
    if not tables:
        raise InvalidRankTableError("no rank table to merge; name one file a server")
    servers: list[RankedServer] = []
    first = 0
    for source, table in tables:
        if len(table.servers) != 1:
            raise InvalidRankTableError(
                f"{source}: server_list: has {len(table.servers)} servers, so it was merged "
                "already; name the files of single servers"
            )
        if table.status != COMPLETED:
            raise InvalidRankTableError(
                f"{source}: status: is {table.status!r}; wait until it is {COMPLETED!r}"
            )
        if table.version != tables[0][1].version:
            raise InvalidRankTableError(
                f"{source}: version: is {table.version!r} and {tables[0][0]} has "
                f"{tables[0][1].version!r}; merge tables of one version"
            )
        server = table.servers[0]
        ranked = tuple(
            attrs.evolve(device, rank_id=first + device.rank_id) for device in server.devices
        )
        servers.append(attrs.evolve(server, devices=ranked))
        first += len(ranked)
    merged = RankTable(tuple(servers), version=tables[0][1].version)
    check_rank_table(merged, source=" + ".join(source for source, _ in tables))
    return merged


def merged_file_name(table: RankTable) -> str:
    """The reference's name for a merged table's file."""
    return f"hccl_{len(table.servers)}s_{table.rank_size}p.json"


def checked_address(text: str) -> str:
    """An IPv4 or IPv6 address.

    Raises:
        ValueError: it is none.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        masked = "; it is masked: put the real one there" if "x" in text.lower() else ""
        raise ValueError(f"{text!r} is not an IP address{masked}") from None
    return text


def _parse_servers(table: _Fields) -> RankTable:
    version = table.text("version")
    servers = []
    for server in table.items("server_list"):
        devices = tuple(
            RankedDevice(
                device.number("device_id"),
                device.address("device_ip"),
                device.number("rank_id"),
                device.rest(_DEVICE_KEYS),
            )
            for device in server.items("device")
        )
        servers.append(
            RankedServer(server.address("server_id"), devices, server.rest(_SERVER_KEYS))
        )
    status = table.text("status") if "status" in table.values else COMPLETED
    if "server_count" in table.values and table.number("server_count") != len(servers):
        raise table.error(
            "server_count", f"is {table.number('server_count')} and server_list has {len(servers)}"
        )
    return RankTable(tuple(servers), version, status, table.rest(_TABLE_KEYS))


def _parse_groups(table: _Fields) -> RankTable:
    """The template of ModelArts and CCE, and the oldest lab format."""
    instances = [
        instance for group in table.items("group_list") for instance in group.items("instance_list")
    ]
    if not any("rank_id" in instance.values for instance in instances):
        instances = _by_pod(instances)
    found: dict[str, list[RankedDevice]] = {}
    rank = 0
    for instance in instances:
        devices = found.setdefault(instance.address("server_id"), [])
        members = instance.items("devices")
        explicit = "rank_id" in instance.values
        if explicit and len(members) != 1:
            raise instance.error("rank_id", f"stands for {len(members)} devices; it can be one's")
        for device in members:
            rank_id = instance.number("rank_id") if explicit else rank
            devices.append(
                RankedDevice(device.number("device_id"), device.address("device_ip"), rank_id)
            )
            rank += 1
    servers = tuple(RankedServer(name, tuple(devices)) for name, devices in found.items())
    status = table.text("status") if "status" in table.values else COMPLETED
    return RankTable(servers, status=status)


def _by_pod(instances: list[_Fields]) -> list[_Fields]:
    """Instances in the order of the number that their pods' names end in, if all have one."""
    numbers = []
    for instance in instances:
        found = _TRAILING_NUMBER.search(str(instance.values.get("pod_name", "")))
        if found is None:
            return instances
        numbers.append(int(found[1]))
    order = sorted(range(len(instances)), key=numbers.__getitem__)
    return [instances[position] for position in order]


class _Fields:
    """An object of the file and where it stands, for messages that name the field."""

    def __init__(self, values: Any, source: str, path: str) -> None:
        self._source, self._path = source, path
        if not isinstance(values, dict):
            raise self.error("", f"must be an object, not {values!r:.60}")
        self.values: dict[str, Any] = values

    def error(self, key: str, what: str) -> InvalidRankTableError:
        place = ".".join(part for part in (self._path, key) if part)
        return InvalidRankTableError(
            ": ".join(part for part in (self._source, place, what) if part)
        )

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            what = "is missing" if key not in self.values else f"must be a text, not {value!r:.60}"
            raise self.error(key, what)
        return value

    def number(self, key: str) -> int:
        value = self.values.get(key)
        # Some tools write numbers where the format says strings.
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not _NUMBER.fullmatch(value):
            if key not in self.values:
                raise self.error(key, "is missing")
            raise self.error(key, f"must be a number from 0, as a text, not {value!r:.60}")
        return int(value)

    def address(self, key: str) -> str:
        try:
            return checked_address(self.text(key))
        except ValueError as exc:
            raise self.error(key, str(exc)) from exc

    def items(self, key: str) -> list[_Fields]:
        value = self.values.get(key)
        if not isinstance(value, list):
            what = "is missing" if key not in self.values else "must be a list"
            raise self.error(key, what)
        prefix = f"{self._path}.{key}" if self._path else key
        return [
            _Fields(item, self._source, f"{prefix}[{number}]") for number, item in enumerate(value)
        ]

    def rest(self, known: Iterable[str]) -> dict[str, Any]:
        return {key: value for key, value in self.values.items() if key not in known}


def _refuse_twice(source: str, what: str, values: Iterable[str]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InvalidRankTableError(
                f"{source}: {what} {value} is there twice; each is one's own"
            )
        seen.add(value)


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))
