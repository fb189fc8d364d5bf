"""Finds this node's part of a job: from options, a rank table, and what platforms inject.

ModelArts sets MA_NUM_HOSTS, MA_NUM_GPUS, VC_TASK_INDEX, VC_WORKER_HOSTS and RANK_TABLE_FILE in
each container; MindCluster's operator sets MS_SCHED_HOST, MS_SCHED_PORT, MS_WORKER_NUM,
MS_LOCAL_WORKER, MS_NODE_RANK, MS_ROLE and NPU_POD in each pod, or writes a rank table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from glm3sdk.adapters.cluster.launch_plan import NodePart
from glm3sdk.adapters.cluster.rank_table import find_server, server_placements, servers_by_rank
from glm3sdk.domain.rank_table import RankTable
from glm3sdk.errors import LaunchError
from glm3sdk.ports.cluster_topology import Placement

T = TypeVar("T")

DEFAULT_PORT = 8118
"""msrun's default for the scheduler."""

MINDCLUSTER_TABLE = Path("/user/serverid/devindex/config/hccl.json")
"""Where MindCluster mounts the rank table of a job that asks for one."""


@attrs.frozen(kw_only=True)
class LaunchRequest:
    """What a user asks for; None leaves it to the rank table, the platform or a default.

    Attributes:
        nproc: ranks of this node.
        nnodes: nodes of the job.
        node_rank: number of this node.
        master_addr: address or name of node 0.
        master_port: port of MindSpore's scheduler there.
        rank_table: HCCL rank table, or the directory that ModelArts writes it to.
        server_id: this host's entry in the rank table.
        device: "ascend" or "cpu".
    """

    nproc: int | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    rank_table: Path | None = None
    server_id: str | None = None
    device: str | None = None


@attrs.frozen(kw_only=True)
class Host:
    """What the machine tells of itself.

    Attributes:
        name: of the host.
        address: of the host, for messages.
        owns: whether an address is the host's.
        cards: Ascend cards that this process may use.
        read_table: reads a rank table; where the flag says so, it waits for a platform that
            still writes it.
        resolve: turns a name into an address; raises LaunchError.
        has_file: whether a file is there.
    """

    name: str
    address: str
    owns: Callable[[str], bool]
    cards: int
    read_table: Callable[[Path, bool], RankTable]
    resolve: Callable[[str], str]
    has_file: Callable[[Path], bool]


def find_part(request: LaunchRequest, *, environ: Mapping[str, str], host: Host) -> NodePart:
    """This node's part of the job.

    Raises:
        LaunchError: something is missing or out of range, or two sources contradict each
            other; the message names both.
        InvalidRankTableError: the rank table cannot be used.
    """
    if rank := environ.get("RANK_ID"):
        raise LaunchError(
            f"RANK_ID is {rank}: this process is a rank already; run one `glm3 launch` a node, "
            "and unset RANK_ID if an earlier job left it"
        )
    told = _injected(environ, host)
    path = request.rank_table or _table_path(environ, host, told)
    # A user's own file is there or is a mistake.
    table = None if path is None else host.read_table(path, request.rank_table is None)
    if path is not None and path.is_dir():
        path /= "jobstart_hccl.json"
    if table is None or path is None:
        return _even(request, told, host)
    return _by_table(request, told, host, table, path)


@attrs.frozen(kw_only=True)
class _Injected:
    """What a platform says; the names are the variables'."""

    nproc: int | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    names: Mapping[str, str] = attrs.field(factory=dict)
    only_schedules: bool = False
    schedules: bool | None = None


def _injected(environ: Mapping[str, str], host: Host) -> _Injected:
    if environ.get("MS_SCHED_HOST") and environ.get("MS_WORKER_NUM"):
        return _mindcluster(environ, host)
    if environ.get("MA_NUM_HOSTS"):
        return _modelarts(environ)
    return _Injected()


def _mindcluster(environ: Mapping[str, str], host: Host) -> _Injected:
    workers = _number(environ, "MS_WORKER_NUM", least=1)
    local = _number(environ, "MS_LOCAL_WORKER", least=1)
    if workers % local:
        raise LaunchError(
            f"MS_WORKER_NUM is {workers} and MS_LOCAL_WORKER is {local}, which does not divide it; "
            "give every pod of the job the same number of cards"
        )
    schedules = environ.get("MS_ROLE") == "MS_SCHED"
    # Older operators do not set NPU_POD; a scheduler's pod without cards has none to show.
    with_cards = environ.get("NPU_POD", "true" if host.cards else "false") == "true"
    return _Injected(
        nproc=local,
        nnodes=workers // local,
        node_rank=_number(environ, "MS_NODE_RANK"),
        master_addr=environ["MS_SCHED_HOST"],
        master_port=_number(environ, "MS_SCHED_PORT", least=1),
        names={
            "nproc": "MS_LOCAL_WORKER",
            "nnodes": "MS_WORKER_NUM / MS_LOCAL_WORKER",
            "node_rank": "MS_NODE_RANK",
        },
        schedules=schedules,
        only_schedules=schedules and not with_cards,
    )


def _modelarts(environ: Mapping[str, str]) -> _Injected:
    nnodes = _number(environ, "MA_NUM_HOSTS", least=1)
    hosts = [name.strip() for name in environ.get("VC_WORKER_HOSTS", "").split(",") if name.strip()]
    if hosts and len(hosts) != nnodes:
        raise LaunchError(
            f"MA_NUM_HOSTS is {nnodes} and VC_WORKER_HOSTS names {len(hosts)} hosts; pass "
            "--nnodes, --node-rank and --master-addr"
        )
    cards = _number(environ, "MA_NUM_GPUS") if environ.get("MA_NUM_GPUS") else 0
    return _Injected(
        nproc=cards or None,
        nnodes=nnodes,
        node_rank=_number(environ, "VC_TASK_INDEX") if environ.get("VC_TASK_INDEX") else None,
        master_addr=hosts[0] if hosts else None,
        names={"nproc": "MA_NUM_GPUS", "nnodes": "MA_NUM_HOSTS", "node_rank": "VC_TASK_INDEX"},
    )


def _table_path(environ: Mapping[str, str], host: Host, told: _Injected) -> Path | None:
    if path := environ.get("RANK_TABLE_FILE"):
        return Path(path)
    # A Volcano job has this file and no variables.
    if told.nnodes is None and host.has_file(MINDCLUSTER_TABLE):
        return MINDCLUSTER_TABLE
    return None


def _even(request: LaunchRequest, told: _Injected, host: Host) -> NodePart:
    """A job whose nodes have the same number of ranks."""
    nproc = _first(request.nproc, told.nproc, host.cards or None)
    if nproc is None:
        raise LaunchError("how many ranks? There is no Ascend card here; pass --nproc N")
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; start at least 1 rank")
    nnodes = _first(request.nnodes, told.nnodes, 1)
    if nnodes is None or nnodes < 1:
        raise LaunchError(f"--nnodes is {nnodes}; a job has at least 1 node")
    node_rank = _first(request.node_rank, told.node_rank)
    if node_rank is None:
        if nnodes > 1:
            raise LaunchError(
                f"which of the {nnodes} nodes is this? Pass --node-rank, 0 to {nnodes - 1}"
            )
        node_rank = 0
    _check_node_rank(request, told, node_rank, nnodes)
    device = request.device or ("ascend" if host.cards else "cpu")
    if device == "ascend" and not told.only_schedules:
        _check_cards(nproc, host)
    ranks = tuple(
        Placement(node_rank * nproc + local, nnodes * nproc, local, local, host.name)
        for local in range(nproc)
    )
    return _part(
        request,
        told,
        host,
        node_rank=node_rank,
        nnodes=nnodes,
        rank_size=nnodes * nproc,
        ranks=() if told.only_schedules else ranks,
        device=device,
        default_master=None,
    )


def _by_table(
    request: LaunchRequest, told: _Injected, host: Host, table: RankTable, path: Path
) -> NodePart:
    """A job whose nodes and cards a rank table lists."""
    servers = servers_by_rank(table)
    nnodes = len(servers)
    for option, value in (("--nnodes", request.nnodes), (told.names.get("nnodes"), told.nnodes)):
        if value is not None and value != nnodes:
            raise LaunchError(f"{option} is {value} and {path} lists {nnodes} servers")
    node_rank = _first(request.node_rank, told.node_rank)
    server = find_server(table, server_id=request.server_id, owns=host.owns, source=str(path))
    if server is None:
        if node_rank is None and nnodes > 1:
            known = ", ".join(server.server_id for server in servers)
            raise LaunchError(
                f"{path}: does not name this host ({host.address}); it names {known}: "
                "pass --node-rank or --server-id"
            )
        node_rank = node_rank or 0
        _check_node_rank(request, told, node_rank, nnodes)
        server = servers[node_rank]
    elif node_rank is not None and node_rank != servers.index(server):
        option = "--node-rank" if request.node_rank is not None else told.names["node_rank"]
        raise LaunchError(
            f"{option} is {node_rank}, and in {path} this host ({server.server_id}) is node "
            f"{servers.index(server)}"
        )
    node_rank = servers.index(server)
    ranks = server_placements(table, server)
    if request.nproc is not None and request.nproc != len(ranks):
        raise LaunchError(
            f"--nproc is {request.nproc}, and {path} gives server {server.server_id} "
            f"{len(ranks)} cards"
        )
    return _part(
        request,
        told,
        host,
        node_rank=node_rank,
        nnodes=nnodes,
        rank_size=table.rank_size,
        ranks=() if told.only_schedules else ranks,
        device=request.device or "ascend",
        default_master=servers[0].server_id,
        rank_table=path.absolute(),
    )


def _part(
    request: LaunchRequest,
    told: _Injected,
    host: Host,
    *,
    node_rank: int,
    nnodes: int,
    rank_size: int,
    ranks: tuple[Placement, ...],
    device: str,
    default_master: str | None,
    rank_table: Path | None = None,
) -> NodePart:
    leads = node_rank == 0 if told.schedules is None else told.schedules
    members = tuple(range(0 if told.only_schedules else 1, nnodes)) if leads else ()
    alone = leads and not members
    master = _first(request.master_addr, told.master_addr, default_master)
    if master is None:
        if not alone:
            raise LaunchError("where is node 0? Pass --master-addr, an address of that node")
        master = "127.0.0.1"
    port = _first(request.master_port, told.master_port, None if alone else DEFAULT_PORT)
    if port is not None and not 1 <= port <= 65534:
        raise LaunchError(f"--master-port is {port}; it can be 1 to 65534")
    name = "the scheduler's node" if told.only_schedules else f"node {node_rank}"
    return NodePart(
        name=f"{name} ({host.name})",
        node_rank=node_rank,
        nnodes=nnodes,
        rank_size=rank_size,
        ranks=ranks,
        leads=leads,
        members=members,
        # MindSpore wants an address.
        master_addr=host.resolve(master),
        master_port=port,
        rank_table=rank_table,
        device=device,
    )


def _check_node_rank(request: LaunchRequest, told: _Injected, node_rank: int, nnodes: int) -> None:
    if not 0 <= node_rank < nnodes:
        option = "--node-rank" if request.node_rank is not None else told.names["node_rank"]
        raise LaunchError(f"{option} is {node_rank}; nodes are counted from 0 to {nnodes - 1}")


def _check_cards(nproc: int, host: Host) -> None:
    if nproc > host.cards:
        cards = f"{host.cards} Ascend cards" if host.cards != 1 else "1 Ascend card"
        raise LaunchError(
            f"{nproc} ranks need {nproc} cards and this host shows {cards}; pass a smaller "
            "--nproc, see ASCEND_RT_VISIBLE_DEVICES, or pass --device cpu"
        )


def _number(environ: Mapping[str, str], name: str, *, least: int = 0) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        found = f"is {text!r}" if text else "is not set"
        raise LaunchError(f"{name} {found}; the platform sets it to a number from {least}")
    return int(text)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def count_cards(environ: Mapping[str, str], devices: Sequence[str]) -> int:
    """Ascend cards that this process may use.

    Args:
        environ: ASCEND_RT_VISIBLE_DEVICES narrows them down.
        devices: names in /dev.
    """
    present = sum(name.startswith("davinci") and name[7:].isdigit() for name in devices)
    visible = environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, sum(bool(name.strip()) for name in visible.split(",")))
