"""What a launcher starts on its node: the ranks, and each process's environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from glm3sdk.adapters.cluster.environment import LOCAL_RANK, RESTART
from glm3sdk.ports.cluster_topology import Placement

JOB_TOKEN = "GLM3SDK_JOB_TOKEN"  # noqa: S105  # the variable's name
"""What launchers of one job show each other, where it is set."""

# How long MindSpore waits for the others to come, in seconds; its own default is 30 minutes.
_MEETING_S = 600
# MindSpore tries again after 3 to 5 s, for the sake of thousands of ranks; these meet faster.
_FEW_RANKS = 64
_RETRIES = ("MS_RETRY_INTERVAL_LOWER", "MS_RETRY_INTERVAL_UPPER")
# What an earlier job may have left, and what a platform says of the whole pod: each process
# gets its own or none.
_OWN = (
    JOB_TOKEN,
    "DEVICE_ID",
    "LOCAL_RANK",
    "MS_LOCAL_WORKER",
    "MS_NODE_ID",
    "MS_NODE_RANK",
    "MS_ROLE",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_SERVER_NUM",
    "MS_WORKER_NUM",
    "RANK_ID",
    "RANK_SIZE",
    "RANK_TABLE_FILE",
)


@attrs.frozen(kw_only=True)
class NodePart:
    """The part of a job that one launcher starts.

    Attributes:
        name: how messages call the node.
        node_rank: its number; that of its launcher among those that lead.
        nnodes: nodes with ranks.
        rank_size: ranks of the whole job.
        ranks: this node's; none on a node that only leads.
        leads: this launcher starts the scheduler, and the others report to it.
        members: node ranks of the other launchers, where this one leads.
        master_addr: address of the leading node.
        master_port: the scheduler's port; None takes a free one (of one node alone).
        rank_table: file for HCCL, if there is one.
        device: "ascend" or "cpu".
    """

    name: str
    node_rank: int = 0
    nnodes: int = 1
    rank_size: int
    ranks: tuple[Placement, ...]
    leads: bool = True
    members: tuple[int, ...] = ()
    master_addr: str = "127.0.0.1"
    master_port: int | None = None
    rank_table: Path | None = None
    device: str = "cpu"

    @property
    def alone(self) -> bool:
        """Whether there is no other launcher."""
        return self.leads and not self.members


@attrs.frozen
class PlannedProcess:
    """One process to start.

    Attributes:
        name: "rank 3" or "scheduler".
        command: the program and its arguments.
        variables: what the launcher sets; the rest of the environment is the launcher's own.
    """

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str]

    @property
    def log_name(self) -> str:
        """Name of its log file."""
        return f"{self.name.replace(' ', '_')}.log"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """All of its environment, over the launcher's."""
        kept = {name: value for name, value in base.items() if name not in _OWN}
        return kept | dict(self.variables)


def plan_processes(
    part: NodePart,
    command: Sequence[str],
    *,
    scheduler: Sequence[str] | None,
    port: int,
    attempt: int = 0,
    cpus: int = 1,
    environ: Mapping[str, str],
) -> tuple[PlannedProcess, ...]:
    """The processes of a node, the scheduler first.

    Args:
        part: this node's part of the job.
        command: what every rank runs.
        scheduler: what the scheduler runs; None for a job that meets without MindSpore's.
        port: the scheduler's.
        attempt: how often the job was started before.
        cpus: processors of this node.
        environ: the launcher's environment.
    """
    common = {RESTART: str(attempt), "RANK_SIZE": str(part.rank_size)}
    if part.rank_table is not None:
        common["RANK_TABLE_FILE"] = str(part.rank_table)
    # One process alone meets nobody.
    dynamic = scheduler is not None and part.rank_size > 1
    if dynamic:
        common |= {
            "MS_WORKER_NUM": str(part.rank_size),
            "MS_SCHED_HOST": part.master_addr,
            "MS_SCHED_PORT": str(port),
            "MS_TOPO_TIMEOUT": environ.get("MS_TOPO_TIMEOUT", str(_MEETING_S)),
        }
        if part.rank_size <= _FEW_RANKS and not any(name in environ for name in _RETRIES):
            common |= dict.fromkeys(_RETRIES, "1")
    planned = []
    if dynamic and part.leads and scheduler is not None:
        variables = common | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
        planned.append(PlannedProcess("scheduler", tuple(scheduler), variables))
    for rank in part.ranks:
        variables = common | {
            "RANK_ID": str(rank.rank_id),
            "DEVICE_ID": str(rank.device_id),
            LOCAL_RANK: str(rank.local_rank),
        }
        if dynamic:
            variables |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank.rank_id)}
        if part.device == "cpu" and "OMP_NUM_THREADS" not in environ and len(part.ranks) > 1:
            # Each rank would take every processor, and they would wait for each other.
            variables["OMP_NUM_THREADS"] = str(max(1, cpus // len(part.ranks)))
        planned.append(PlannedProcess(f"rank {rank.rank_id}", tuple(command), variables))
    return tuple(planned)
