"""Rank tables made, merged and read from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glm3sdk.adapters.cluster.rank_table_files import (
    device_addresses,
    own_address,
    read_rank_table,
    write_rank_table,
)
from glm3sdk.domain.rank_table import merge_rank_tables, merged_file_name
from glm3sdk.domain.rank_table_generation import (
    device_range,
    generate_rank_table,
    generated_file_name,
    visible_devices,
)

__all__ = ["generate", "merge", "read_rank_table"]


def generate(
    *,
    device_num: str = "[0,8)",
    visible: str | None = None,
    server_ip: str | None = None,
    device_num_per_node: int = 8,
    hccn_conf: Path | None = None,
    out: Path = Path(),
) -> Path:
    """Write the rank table of this server.

    Args:
        device_num: which cards, half-open, such as "[0,4)".
        visible: what they are on the server, such as "4,5,6,7", where only some are visible.
        server_ip: this server; None finds out.
        device_num_per_node: cards of a server.
        hccn_conf: where the cards' addresses are; None asks hccn_tool, then /etc/hccn.conf.
        out: directory of the file.

    Returns:
        The file, named as the reference names it.

    Raises:
        InvalidRankTableError: a card that cannot be, or that has no address.
        UserError: nothing can be written there.
    """
    devices = device_range(device_num, per_node=device_num_per_node)
    device_ids = visible_devices(visible, devices)
    addresses, source = device_addresses(device_ids, hccn_conf)
    server_id = server_ip or own_address()
    table = generate_rank_table(
        server_id=server_id, device_ids=device_ids, addresses=addresses, source=source
    )
    return write_rank_table(out, generated_file_name(devices, server_id), table)


def merge(files: Sequence[Path], *, out: Path = Path()) -> Path:
    """Write one table of several servers', ranks counted on in this order.

    Raises:
        InvalidRankTableError: a file that cannot be used, or a server that is there twice.
        UserError: nothing can be written there.
    """
    merged = merge_rank_tables([(str(file), read_rank_table(file)) for file in files])
    return write_rank_table(out, merged_file_name(merged), merged)
