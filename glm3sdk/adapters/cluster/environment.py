"""Which rank this process is, by its environment.

Names are those that MindSpore's dynamic cluster reads (`msrun` and `glm3 launch` set them),
those of a rank table (RANK_TABLE_FILE, RANK_ID), and ModelArts' (ASCEND_DEVICE_ID). Where two
of them tell the same thing they must agree: a rank that takes itself for another one trains on
the wrong data and overwrites the other's files.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from glm3sdk.adapters.cluster.rank_table import placement_in_table
from glm3sdk.adapters.cluster.rank_table_files import wait_for_rank_table
from glm3sdk.domain.rank_table import RankTable
from glm3sdk.errors import InvalidPlacementError
from glm3sdk.ports.cluster_topology import Placement

LOCAL_RANK = "LOCAL_RANK"
"""A worker's number on its node; `glm3 launch` sets it."""

RESTART = "GLM3SDK_RESTART"
"""How often `glm3 launch` has started this job again: 0, 1, ..."""

_START = "start it with `glm3 launch`"


def placement_from_environment(
    environ: Mapping[str, str], *, read_table: Callable[[Path], RankTable] | None = None
) -> Placement:
    """This process's placement; rank 0 of 1 where the environment speaks of no job.

    Args:
        environ: such as `os.environ`.
        read_table: reads RANK_TABLE_FILE; by default it must be complete.

    Raises:
        InvalidPlacementError: something is missing, or two variables contradict each other;
            the message names them.
        InvalidRankTableError: the rank table cannot be used.
    """
    if environ.get("MS_ROLE") == "MS_SCHED":
        raise InvalidPlacementError(
            f"MS_ROLE is MS_SCHED: this process is a job's scheduler and no rank; {_START}"
        )
    table = _table(environ, read_table)
    sizes = _numbers(environ, "RANK_SIZE", "MS_WORKER_NUM")
    if table is not None:
        sizes["RANK_TABLE_FILE"] = table.rank_size
    rank_size = _agreed(sizes, "ranks", default=1)
    rank_id = _rank_id(environ, sizes, rank_size)
    _check_dynamic_cluster(environ, rank_size)
    device_id = _device_id(environ)
    server_id = environ.get("MA_CURRENT_IP") or platform.node()
    local_rank = _local_rank(environ, rank_id)
    if table is not None:
        entry = placement_in_table(table, rank_id)
        server_id = entry.server_id
        local_rank = entry.local_rank if local_rank is None else local_rank
        device_id = entry.device_id if device_id is None else device_id
    if local_rank is None:
        # The reference and msrun count cards as they count a node's workers.
        local_rank = device_id or 0
    if device_id is None:
        device_id = local_rank
    return Placement(rank_id, rank_size, local_rank, device_id, server_id)


def restarts(environ: Mapping[str, str]) -> int:
    """How often the launcher has started this job again; 0 without a launcher.

    Raises:
        InvalidPlacementError: the variable is no number.
    """
    return _numbers(environ, RESTART).get(RESTART, 0)


def _table(
    environ: Mapping[str, str], read_table: Callable[[Path], RankTable] | None
) -> RankTable | None:
    path = environ.get("RANK_TABLE_FILE")
    # ModelArts sets it in every container, even where only one process is meant to run.
    if not path or not environ.get("RANK_ID"):
        return None
    if read_table is not None:
        return read_table(Path(path))
    # Whoever set RANK_ID had the table already.
    return wait_for_rank_table(Path(path), timeout_s=0)


def _rank_id(environ: Mapping[str, str], sizes: Mapping[str, int], rank_size: int) -> int:
    ranks = _numbers(environ, "RANK_ID", "MS_NODE_ID")
    if not ranks and rank_size > 1:
        name = next(iter(sizes))
        raise InvalidPlacementError(
            f"{name} is {rank_size} and neither RANK_ID nor MS_NODE_ID says which rank this is; "
            f"{_START}, or `msrun --node_rank`"
        )
    rank_id = _agreed(ranks, "rank", default=0)
    if rank_id >= rank_size:
        name = next(iter(ranks))
        told = next(iter(sizes), None)
        size = f"{told} is {rank_size}" if told else "neither RANK_SIZE nor MS_WORKER_NUM is set"
        raise InvalidPlacementError(
            f"{name} is {rank_id} and {size}: ranks are counted from 0 to RANK_SIZE - 1; {_START}"
        )
    return rank_id


def _check_dynamic_cluster(environ: Mapping[str, str], rank_size: int) -> None:
    role = environ.get("MS_ROLE")
    if role is None:
        if rank_size > 1 and not environ.get("RANK_TABLE_FILE"):
            raise InvalidPlacementError(
                f"this is one of {rank_size} ranks, and neither MS_ROLE nor RANK_TABLE_FILE says "
                f"how they meet; {_START}"
            )
        return
    if role != "MS_WORKER":
        raise InvalidPlacementError(
            f"MS_ROLE is {role!r}; it can be MS_WORKER or MS_SCHED; {_START}"
        )
    for name in ("MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM"):
        if not environ.get(name):
            raise InvalidPlacementError(f"MS_ROLE is MS_WORKER and {name} is not set; {_START}")


def _device_id(environ: Mapping[str, str]) -> int | None:
    devices = _numbers(environ, "DEVICE_ID", "ASCEND_DEVICE_ID")
    return _agreed(devices, "card", default=0) if devices else None


def _local_rank(environ: Mapping[str, str], rank_id: int) -> int | None:
    told = _numbers(environ, LOCAL_RANK)
    node = _numbers(environ, "MS_NODE_RANK", "MS_LOCAL_WORKER")
    if told:
        return told[LOCAL_RANK]
    if len(node) < 2:
        return None
    local_rank = rank_id - node["MS_NODE_RANK"] * node["MS_LOCAL_WORKER"]
    if not 0 <= local_rank < node["MS_LOCAL_WORKER"]:
        raise InvalidPlacementError(
            f"this is rank {rank_id}, and MS_NODE_RANK {node['MS_NODE_RANK']} with "
            f"MS_LOCAL_WORKER {node['MS_LOCAL_WORKER']} has other ranks; {_START}"
        )
    return local_rank


def _numbers(environ: Mapping[str, str], *names: str) -> dict[str, int]:
    found = {}
    for name in names:
        text = environ.get(name)
        if not text:
            continue
        if not (text.isascii() and text.isdigit()):
            raise InvalidPlacementError(f"{name} is {text!r}; it must be a number from 0; {_START}")
        found[name] = int(text)
    return found


def _agreed(values: Mapping[str, int], what: str, *, default: int) -> int:
    if len(set(values.values())) > 1:
        told = " and ".join(f"{name} is {value}" for name, value in values.items())
        raise InvalidPlacementError(
            f"{told}: which {what} is it? Unset what an earlier job left, or {_START}"
        )
    return next(iter(values.values()), default)
