from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from glm3sdk.adapters.cluster.launch_plan import NodePart, plan_processes
from glm3sdk.adapters.cluster.node_part import (
    MINDCLUSTER_TABLE,
    Host,
    LaunchRequest,
    count_cards,
    find_part,
)
from glm3sdk.adapters.cluster.rank_table_files import read_rank_table
from glm3sdk.domain.rank_table import RankedDevice, RankedServer, RankTable
from glm3sdk.errors import LaunchError

# What MindCluster's operator gives a worker's pod (setMindSporeEnv of its sources), of a job
# with two pods of 8 cards and a scheduler's pod.
MINDCLUSTER = {
    "MS_SCHED_HOST": "10.96.3.4",
    "MS_LOCAL_WORKER": "8",
    "MS_WORKER_NUM": "16",
    "MS_NODE_RANK": "1",
    "MS_SCHED_PORT": "2222",
    "MS_SERVER_NUM": "0",
    "MS_ROLE": "MS_WORKER",
    "NPU_POD": "true",
}
# Of ModelArts' documentation of its training containers' variables, for two nodes.
MODELARTS = {
    "MA_CURRENT_IP": "192.168.23.38",
    "MA_NUM_GPUS": "8",
    "MA_TASK_NAME": "worker",
    "MA_NUM_HOSTS": "2",
    "VC_TASK_INDEX": "1",
    "VC_WORKER_NUM": "2",
    "VC_WORKER_HOSTS": "job-a-worker-0.job-a,job-a-worker-1.job-a",
}
TABLE = RankTable(
    (
        # Listed out of order, with uneven numbers of cards.
        RankedServer("10.0.0.2", (RankedDevice(7, "192.1.2.1", 2),)),
        RankedServer(
            "10.0.0.1", (RankedDevice(4, "192.1.1.1", 1), RankedDevice(5, "192.1.1.2", 0))
        ),
    )
)


def host(*own: str, cards: int = 0, table: RankTable = TABLE, files: tuple[Path, ...] = ()) -> Host:
    def resolve(name: str) -> str:
        return name if name[0].isdigit() else f"resolved:{name}"

    return Host(
        name="here",
        address=own[0] if own else "10.9.9.9",
        owns=lambda address: address in own,
        cards=cards,
        read_table=lambda path, wait: table,
        resolve=resolve,
        has_file=lambda path: path in files,
    )


def find(environ: dict[str, str] | None = None, at: Host | None = None, **request: Any) -> NodePart:
    return find_part(LaunchRequest(**request), environ=environ or {}, host=at or host())


def ranks(part: NodePart) -> list[tuple[int, int, int]]:
    return [(rank.rank_id, rank.local_rank, rank.device_id) for rank in part.ranks]


def test_one_node_needs_only_the_number_of_ranks() -> None:
    part = find(nproc=2)
    assert ranks(part) == [(0, 0, 0), (1, 1, 1)]
    assert part.alone
    assert (part.master_addr, part.master_port, part.device) == ("127.0.0.1", None, "cpu")


def test_every_card_of_the_host_is_taken_without_a_number() -> None:
    part = find(at=host(cards=8))
    assert (part.rank_size, part.device) == (8, "ascend")


def test_several_nodes_count_ranks_on() -> None:
    part = find(nproc=2, nnodes=3, node_rank=2, master_addr="node-a", master_port=9000)
    assert ranks(part) == [(4, 0, 0), (5, 1, 1)]
    assert (part.rank_size, part.leads, part.members) == (6, False, ())
    assert (part.master_addr, part.master_port) == ("resolved:node-a", 9000)
    first = find(nproc=2, nnodes=3, node_rank=0, master_addr="10.0.0.1")
    assert (first.leads, first.members, first.master_port) == (True, (1, 2), 8118)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, ["pass --nproc"]),
        ({"nproc": 0}, ["--nproc is 0", "at least 1"]),
        ({"nproc": 2, "nnodes": 0}, ["--nnodes is 0"]),
        ({"nproc": 2, "nnodes": 2}, ["--node-rank, 0 to 1"]),
        ({"nproc": 2, "nnodes": 2, "node_rank": 2}, ["--node-rank is 2", "0 to 1"]),
        ({"nproc": 2, "nnodes": 2, "node_rank": -1}, ["--node-rank is -1"]),
        ({"nproc": 2, "nnodes": 2, "node_rank": 1}, ["--master-addr"]),
        ({"nproc": 2, "master_port": 65535}, ["--master-port is 65535"]),
        ({"nproc": 2, "device": "ascend"}, ["2 ranks", "0 Ascend cards", "--device cpu"]),
    ],
)
def test_a_request_that_cannot_be_is_refused(request_: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(LaunchError) as caught:
        find(**request_)
    for word in words:
        assert word in str(caught.value)


def test_more_ranks_than_cards_are_refused() -> None:
    with pytest.raises(LaunchError, match="9 ranks need 9 cards and this host shows 8 Ascend"):
        find(at=host(cards=8), nproc=9)


def test_a_launcher_within_a_rank_is_refused() -> None:
    with pytest.raises(LaunchError, match="RANK_ID is 3: this process is a rank already"):
        find({"RANK_ID": "3"}, nproc=1)


def test_a_rank_table_tells_everything_to_the_host_that_it_names() -> None:
    part = find(at=host("10.0.0.1"), rank_table=Path("/hccl.json"))
    assert ranks(part) == [(0, 0, 5), (1, 1, 4)]
    assert (part.nnodes, part.node_rank, part.rank_size) == (2, 0, 3)
    assert (part.leads, part.members) == (True, (1,))
    assert (part.master_addr, part.master_port) == ("10.0.0.1", 8118)
    assert part.rank_table == Path("/hccl.json")
    other = find(at=host("10.0.0.2"), rank_table=Path("/hccl.json"))
    assert (ranks(other), other.node_rank, other.leads) == ([(2, 0, 7)], 1, False)


def test_a_host_may_be_told_which_server_it_is() -> None:
    for request in ({"node_rank": 1}, {"server_id": "10.0.0.2"}):
        part = find(rank_table=Path("/hccl.json"), **request)
        assert ranks(part) == [(2, 0, 7)]


@pytest.mark.parametrize(
    ("own", "request_", "words"),
    [
        ((), {}, ["does not name this host (10.9.9.9)", "10.0.0.1, 10.0.0.2", "--server-id"]),
        ((), {"server_id": "10.0.0.3"}, ["no server 10.0.0.3"]),
        (("10.0.0.1", "10.0.0.2"), {}, ["both this host"]),
        (("10.0.0.1",), {"node_rank": 1}, ["--node-rank is 1", "(10.0.0.1) is node 0"]),
        (("10.0.0.1",), {"nproc": 8}, ["--nproc is 8", "server 10.0.0.1 2 cards"]),
        (("10.0.0.1",), {"nnodes": 3}, ["--nnodes is 3", "lists 2 servers"]),
        ((), {"node_rank": 2}, ["--node-rank is 2", "0 to 1"]),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    own: tuple[str, ...], request_: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(LaunchError) as caught:
        find(at=host(*own), rank_table=Path("/hccl.json"), **request_)
    for word in words:
        assert word in str(caught.value)


def test_a_loopback_address_stands_for_a_host_only_where_it_is_alone() -> None:
    devices = (RankedDevice(0, "192.1.1.1", 0),)
    alone = RankTable((RankedServer("127.0.0.1", devices),))
    at = host("127.0.0.1", table=alone)
    assert ranks(find(at=at, rank_table=Path("/hccl.json"))) == [(0, 0, 0)]
    two = RankTable((*alone.servers, RankedServer("10.0.0.2", (RankedDevice(1, "192.1.1.2", 1),))))
    with pytest.raises(LaunchError, match="does not name this host"):
        find(at=host("127.0.0.1", table=two), rank_table=Path("/hccl.json"))


def test_mindclusters_variables_suffice() -> None:
    part = find(MINDCLUSTER, host(cards=8))
    assert (part.nnodes, part.node_rank, part.rank_size) == (2, 1, 16)
    assert [rank.rank_id for rank in part.ranks] == list(range(8, 16))
    assert (part.master_addr, part.master_port, part.leads) == ("10.96.3.4", 2222, False)
    # Node 0 is a worker's pod: the launcher beside the scheduler leads.
    assert not find(MINDCLUSTER | {"MS_NODE_RANK": "0"}, host(cards=8)).leads


def test_mindclusters_scheduler_without_cards_only_schedules() -> None:
    pod = MINDCLUSTER | {"MS_ROLE": "MS_SCHED", "MS_NODE_RANK": "0"}
    for environ in (pod | {"NPU_POD": "false"}, {k: v for k, v in pod.items() if k != "NPU_POD"}):
        part = find(environ)
        assert (part.ranks, part.leads, part.members) == ((), True, (0, 1))
        assert part.rank_size == 16


def test_mindclusters_scheduler_with_cards_is_node_0() -> None:
    part = find(MINDCLUSTER | {"MS_ROLE": "MS_SCHED", "MS_NODE_RANK": "0"}, host(cards=8))
    assert [rank.rank_id for rank in part.ranks] == list(range(8))
    assert (part.leads, part.members) == (True, (1,))


def test_mindclusters_table_is_found_where_a_volcano_job_has_nothing_else() -> None:
    part = find(at=host("10.0.0.2", files=(MINDCLUSTER_TABLE,)))
    assert (ranks(part), part.rank_table) == ([(2, 0, 7)], MINDCLUSTER_TABLE)


def test_mindcluster_pods_that_differ_are_refused() -> None:
    with pytest.raises(LaunchError, match="MS_WORKER_NUM is 12 and MS_LOCAL_WORKER is 8"):
        find(MINDCLUSTER | {"MS_WORKER_NUM": "12"}, host(cards=8))
    with pytest.raises(LaunchError, match="MS_NODE_RANK is not set"):
        find({k: v for k, v in MINDCLUSTER.items() if k != "MS_NODE_RANK"}, host(cards=8))
    with pytest.raises(LaunchError, match="MS_NODE_RANK is 2; nodes are counted from 0 to 1"):
        find(MINDCLUSTER | {"MS_NODE_RANK": "2"}, host(cards=8))


def test_modelarts_variables_suffice() -> None:
    part = find(MODELARTS, host(cards=8))
    assert (part.nnodes, part.node_rank, part.rank_size, part.leads) == (2, 1, 16, False)
    assert part.master_addr == "resolved:job-a-worker-0.job-a"
    assert part.master_port == 8118
    assert find(MODELARTS | {"VC_TASK_INDEX": "0"}, host(cards=8)).members == (1,)


def test_modelarts_rank_table_goes_with_the_task_index(shared_data: Path, tmp_path: Path) -> None:
    published = shared_data / "rank_tables" / "07_modelarts_jobstart_hccl_v0.1.json"
    (tmp_path / "jobstart_hccl.json").write_bytes(published.read_bytes())
    environ = {
        "RANK_TABLE_FILE": str(tmp_path),
        "MA_NUM_HOSTS": "1",
        "MA_NUM_GPUS": "1",
        "VC_TASK_INDEX": "0",
    }
    at = attrs.evolve(host(), read_table=lambda path, wait: read_rank_table(path))
    part = find(environ, at)
    # One card, which the platform numbers 4; the container does not know the host's address.
    assert ranks(part) == [(0, 0, 4)]
    assert part.rank_table == tmp_path / "jobstart_hccl.json"
    with pytest.raises(LaunchError, match=r"MA_NUM_HOSTS is 2 and .* lists 1 servers"):
        find(environ | {"MA_NUM_HOSTS": "2"}, at)


def test_options_go_before_what_a_platform_says() -> None:
    part = find(MODELARTS, host(cards=8), nproc=4, node_rank=0, master_port=7000)
    assert (part.rank_size, part.node_rank, part.master_port) == (8, 0, 7000)


def test_hosts_that_are_not_counted_right_are_refused() -> None:
    with pytest.raises(LaunchError, match="MA_NUM_HOSTS is 3 and VC_WORKER_HOSTS names 2"):
        find(MODELARTS | {"MA_NUM_HOSTS": "3"}, host(cards=8))


def test_visible_cards_are_counted() -> None:
    devices = ["davinci0", "davinci1", "davinci_manager", "davinci2", "null"]
    assert count_cards({}, devices) == 3
    assert count_cards({"ASCEND_RT_VISIBLE_DEVICES": "1,2"}, devices) == 2
    assert count_cards({"ASCEND_RT_VISIBLE_DEVICES": ""}, devices) == 0


def plan(part: NodePart, environ: dict[str, str], **options: Any) -> dict[str, dict[str, str]]:
    options = {"scheduler": ("sched",), "port": 8118, "cpus": 8} | options
    planned = plan_processes(part, ("work", "--fast"), environ=environ, **options)
    assert {process.command for process in planned} <= {("work", "--fast"), ("sched",)}
    return {process.name: process.environment(environ) for process in planned}


def test_each_rank_gets_its_variables_and_the_scheduler_stands_on_node_0_alone() -> None:
    request = {"nproc": 2, "nnodes": 2, "master_addr": "10.0.0.1"}
    found = plan(find(node_rank=0, **request), {"HOME": "/root"}, attempt=1)
    assert list(found) == ["scheduler", "rank 0", "rank 1"]
    shared = {
        "HOME": "/root",
        "GLM3SDK_RESTART": "1",
        "RANK_SIZE": "4",
        "MS_WORKER_NUM": "4",
        "MS_SCHED_HOST": "10.0.0.1",
        "MS_SCHED_PORT": "8118",
        "MS_TOPO_TIMEOUT": "600",
        "MS_RETRY_INTERVAL_LOWER": "1",
        "MS_RETRY_INTERVAL_UPPER": "1",
    }
    assert found["scheduler"] == shared | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
    assert found["rank 1"] == shared | {
        "MS_ROLE": "MS_WORKER",
        "MS_NODE_ID": "1",
        "RANK_ID": "1",
        "DEVICE_ID": "1",
        "LOCAL_RANK": "1",
        "OMP_NUM_THREADS": "4",
    }
    other = plan(find(node_rank=1, **request), {})
    assert list(other) == ["rank 2", "rank 3"]
    assert (other["rank 3"]["DEVICE_ID"], other["rank 3"]["MS_NODE_ID"]) == ("1", "3")


def test_what_a_platform_or_an_earlier_job_left_does_not_reach_the_ranks() -> None:
    environ = MINDCLUSTER | {"GLM3SDK_JOB_TOKEN": "secret", "DEVICE_ID": "7"}
    found = plan(find(MINDCLUSTER, host(cards=8)), environ)["rank 9"]
    assert (found["MS_ROLE"], found["DEVICE_ID"], found["RANK_ID"]) == ("MS_WORKER", "1", "9")
    for name in ("GLM3SDK_JOB_TOKEN", "MS_NODE_RANK", "MS_LOCAL_WORKER", "MS_SERVER_NUM"):
        assert name not in found
    assert "OMP_NUM_THREADS" not in found


def test_a_users_own_values_stay() -> None:
    own = {"OMP_NUM_THREADS": "3", "MS_TOPO_TIMEOUT": "60", "MS_RETRY_INTERVAL_LOWER": "4"}
    found = plan(find(nproc=2), own)["rank 0"]
    assert {name: found[name] for name in own} == own
    assert "MS_RETRY_INTERVAL_UPPER" not in found


def test_one_rank_alone_and_a_job_without_a_scheduler_meet_nobody() -> None:
    alone = plan(find(nproc=1), {})
    assert list(alone) == ["rank 0"]
    assert not any(name.startswith("MS_") for name in alone["rank 0"])
    part = find(at=host("10.0.0.1"), rank_table=Path("/hccl.json"))
    table = plan(part, {}, scheduler=None)
    assert list(table) == ["rank 0", "rank 1"]
    assert table["rank 0"] == {
        "GLM3SDK_RESTART": "0",
        "RANK_SIZE": "3",
        "RANK_TABLE_FILE": "/hccl.json",
        "RANK_ID": "0",
        "DEVICE_ID": "5",
        "LOCAL_RANK": "0",
    }
