from __future__ import annotations

import pytest

from glm3sdk.adapters.cluster.single import SingleProcess
from glm3sdk.bootstrap.topology import load_topology
from glm3sdk.errors import InvalidPlacementError, UnknownNameError

JOB = {
    "MS_ROLE": "MS_WORKER",
    "MS_WORKER_NUM": "2",
    "MS_NODE_ID": "1",
    "MS_SCHED_HOST": "127.0.0.1",
    "MS_SCHED_PORT": "8118",
}


def test_without_a_launcher_it_is_a_single_process() -> None:
    topology = load_topology("cpu", environ={"DEVICE_ID": "2"})
    assert isinstance(topology, SingleProcess)
    assert topology.placement.device_id == 2


def test_a_launched_rank_meets_the_others_through_mindspore() -> None:
    topology = load_topology("cpu", environ=JOB)
    assert not isinstance(topology, SingleProcess)
    assert (topology.placement.rank_id, topology.placement.rank_size) == (1, 2)


def test_a_job_that_does_not_say_which_rank_this_is_is_refused() -> None:
    with pytest.raises(InvalidPlacementError, match="MS_NODE_ID"):
        load_topology("cpu", environ=JOB | {"MS_NODE_ID": ""})


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="ascend, cpu"):
        load_topology("gpu", environ={})
