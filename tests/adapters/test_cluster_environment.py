from __future__ import annotations

import platform
from pathlib import Path

import pytest

from glm3sdk.adapters.cluster.environment import placement_from_environment, restarts
from glm3sdk.adapters.cluster.rank_table_files import read_rank_table
from glm3sdk.domain.rank_table import RankedDevice, RankedServer, RankTable
from glm3sdk.errors import InvalidPlacementError, InvalidRankTableError
from glm3sdk.ports.cluster_topology import Placement

# What `msrun --worker_num 8 --local_worker_num 4 --node_rank 1` gives its second worker.
MSRUN = {
    "MS_ROLE": "MS_WORKER",
    "MS_WORKER_NUM": "8",
    "MS_NODE_ID": "5",
    "MS_SCHED_HOST": "10.0.0.1",
    "MS_SCHED_PORT": "8118",
    "MS_TOPO_TIMEOUT": "600",
    "RANK_SIZE": "8",
    "RANK_ID": "5",
    "DEVICE_ID": "1",
}
TABLE = RankTable(
    (
        RankedServer(
            "10.0.0.1", (RankedDevice(0, "192.1.1.1", 0), RankedDevice(1, "192.1.1.2", 1))
        ),
        RankedServer(
            "10.0.0.2", (RankedDevice(6, "192.1.2.1", 3), RankedDevice(7, "192.1.2.2", 2))
        ),
    )
)


def test_without_a_job_it_is_rank_0_of_1() -> None:
    assert placement_from_environment({}) == Placement(server_id=platform.node())
    # A card alone, as users choose one for a single process.
    assert placement_from_environment({"DEVICE_ID": "3"}).device_id == 3


def test_msruns_variables_are_read() -> None:
    found = placement_from_environment(MSRUN)
    assert found == Placement(5, 8, 1, 1, platform.node())


def test_the_launchers_local_rank_goes_before_the_card() -> None:
    assert placement_from_environment(MSRUN | {"DEVICE_ID": "7", "LOCAL_RANK": "1"}).local_rank == 1


def test_mindclusters_node_rank_gives_the_local_rank() -> None:
    node = {"MS_NODE_RANK": "1", "MS_LOCAL_WORKER": "4"}
    found = placement_from_environment({**MSRUN, **node, "DEVICE_ID": "6"})
    assert (found.local_rank, found.device_id) == (1, 6)
    with pytest.raises(InvalidPlacementError, match=r"rank 5.*MS_NODE_RANK 0.*MS_LOCAL_WORKER 4"):
        placement_from_environment({**MSRUN, **node, "MS_NODE_RANK": "0"})


def test_a_rank_table_gives_server_and_card() -> None:
    environ = {"RANK_TABLE_FILE": "/hccl.json", "RANK_ID": "3", "RANK_SIZE": "4"}
    found = placement_from_environment(environ, read_table=lambda path: TABLE)
    assert found == Placement(3, 4, 1, 6, "10.0.0.2")


def test_modelarts_names_the_card_and_its_table_the_server(tmp_path: Path) -> None:
    # A container sees its cards from 0, whatever they are on the host.
    environ = {
        "RANK_TABLE_FILE": "/user/config",
        "RANK_ID": "2",
        "RANK_SIZE": "4",
        "ASCEND_DEVICE_ID": "0",
    }
    found = placement_from_environment(environ, read_table=lambda path: TABLE)
    assert found == Placement(2, 4, 0, 0, "10.0.0.2")


def test_a_published_table_is_read_from_its_file(shared_data: Path) -> None:
    path = shared_data / "rank_tables" / "01_v1.0_single_8p_ktuna26.json"
    table = read_rank_table(path)
    environ = {"RANK_TABLE_FILE": str(path), "RANK_ID": "7", "RANK_SIZE": "8"}
    found = placement_from_environment(environ)
    server, device = table.find(7)
    assert found == Placement(7, 8, 7, device.device_id, server.server_id)


def test_a_table_without_a_rank_is_a_platforms_and_no_job() -> None:
    assert placement_from_environment({"RANK_TABLE_FILE": "/user/config"}).rank_size == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"MS_NODE_ID": "4"}, ["RANK_ID is 5", "MS_NODE_ID is 4"]),
        ({"RANK_SIZE": "4"}, ["RANK_SIZE is 4", "MS_WORKER_NUM is 8"]),
        ({"ASCEND_DEVICE_ID": "2"}, ["DEVICE_ID is 1", "ASCEND_DEVICE_ID is 2"]),
        ({"RANK_ID": "8", "MS_NODE_ID": "8"}, ["RANK_ID is 8", "RANK_SIZE is 8"]),
        ({"RANK_ID": "-1"}, ["RANK_ID is '-1'"]),
        ({"RANK_ID": "five"}, ["RANK_ID is 'five'"]),
        ({"RANK_ID": "", "MS_NODE_ID": ""}, ["RANK_SIZE is 8", "RANK_ID", "MS_NODE_ID"]),
        ({"MS_SCHED_HOST": ""}, ["MS_SCHED_HOST is not set"]),
        ({"MS_ROLE": "MS_PSERVER"}, ["MS_ROLE is 'MS_PSERVER'"]),
        ({"MS_ROLE": "MS_SCHED"}, ["MS_ROLE is MS_SCHED"]),
    ],
)
def test_a_contradiction_names_both_sides(changed: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InvalidPlacementError) as caught:
        placement_from_environment(MSRUN | changed)
    for word in [*words, "glm3 launch"]:
        assert word in str(caught.value)


def test_ranks_that_have_no_way_to_meet_are_refused() -> None:
    with pytest.raises(InvalidPlacementError, match="neither MS_ROLE nor RANK_TABLE_FILE"):
        placement_from_environment({"RANK_ID": "1", "RANK_SIZE": "2"})
    with pytest.raises(InvalidPlacementError, match="neither RANK_SIZE nor MS_WORKER_NUM"):
        placement_from_environment({"RANK_ID": "1"})


def test_a_table_of_another_size_or_without_the_rank_is_refused() -> None:
    environ = {"RANK_TABLE_FILE": "/hccl.json", "RANK_ID": "3", "RANK_SIZE": "8"}
    with pytest.raises(InvalidPlacementError, match=r"RANK_SIZE is 8 and RANK_TABLE_FILE is 4"):
        placement_from_environment(environ, read_table=lambda path: TABLE)
    environ = {"RANK_TABLE_FILE": "/no/such/file", "RANK_ID": "0"}
    with pytest.raises(InvalidRankTableError, match="/no/such/file"):
        placement_from_environment(environ, read_table=read_rank_table)


def test_restarts_are_counted_from_the_launchers_variable() -> None:
    assert restarts({}) == 0
    assert restarts({"GLM3SDK_RESTART": "2"}) == 2
    with pytest.raises(InvalidPlacementError, match="GLM3SDK_RESTART is 'x'"):
        restarts({"GLM3SDK_RESTART": "x"})
