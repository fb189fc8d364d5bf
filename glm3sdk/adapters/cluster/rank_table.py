"""Where a rank stands, by a rank table."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from glm3sdk.domain.rank_table import RankedServer, RankTable
from glm3sdk.errors import LaunchError
from glm3sdk.ports.cluster_topology import Placement


def placement_in_table(table: RankTable, rank_id: int) -> Placement:
    """A rank's placement; its local rank counts its server's cards in the order of their ranks.

    Raises:
        InvalidRankTableError: there is no such rank.
    """
    server, _ = table.find(rank_id)
    return next(part for part in server_placements(table, server) if part.rank_id == rank_id)


def server_placements(table: RankTable, server: RankedServer) -> tuple[Placement, ...]:
    """The ranks of a server, in their order."""
    devices = sorted(server.devices, key=lambda device: device.rank_id)
    return tuple(
        Placement(device.rank_id, table.rank_size, local, device.device_id, server.server_id)
        for local, device in enumerate(devices)
    )


def servers_by_rank(table: RankTable) -> tuple[RankedServer, ...]:
    """The servers in the order of their lowest ranks: node 0 is the one with rank 0."""
    return tuple(
        sorted(table.servers, key=lambda server: min(device.rank_id for device in server.devices))
    )


def find_server(
    table: RankTable, *, server_id: str | None, owns: Callable[[str], bool], source: str
) -> RankedServer | None:
    """This host's entry, by the name given or by the host's own addresses.

    Args:
        table: a checked rank table.
        server_id: the entry's server_id; None goes by the addresses.
        owns: whether an address is this host's.
        source: the file's name, for messages.

    Returns:
        The entry, or None where no name is given and no address is in the table.

    Raises:
        LaunchError: no entry, or more than one, is this host.
    """
    if server_id is not None:
        for server in table.servers:
            if _canonical(server.server_id) == _canonical(server_id):
                return server
        known = ", ".join(server.server_id for server in table.servers)
        raise LaunchError(f"{source}: names no server {server_id} (there are: {known})")
    named = [server for server in table.servers if owns(server.server_id)]
    # Every host has a loopback address: it tells something only where nothing else could.
    distinct = [
        server for server in named if not ipaddress.ip_address(server.server_id).is_loopback
    ]
    found = distinct if len(table.servers) > 1 else named
    if len(found) > 1:
        names = ", ".join(server.server_id for server in found)
        raise LaunchError(
            f"{source}: servers {names} are both this host; pass --node-rank or --server-id"
        )
    return found[0] if found else None


def _canonical(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text
