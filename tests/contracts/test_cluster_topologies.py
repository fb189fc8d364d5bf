from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from glm3sdk.adapters.cluster.single import SingleProcess
from glm3sdk.errors import RuntimeFailureError
from glm3sdk.ports.cluster_topology import ClusterTopology, Placement
from glm3sdk.testing import ClusterTopologyContract, ThreadCluster
from glm3sdk.testing.topology_contract import RunRanks


class TestSingleProcess(ClusterTopologyContract):
    @pytest.fixture
    def run_ranks(self) -> RunRanks:
        def run(work: Callable[[ClusterTopology], Any]) -> list[Any]:
            return [work(SingleProcess())]

        return run


class TestThreadCluster(ClusterTopologyContract):
    @pytest.fixture
    def run_ranks(self) -> RunRanks:
        return ThreadCluster(3).run


def test_a_single_process_keeps_its_card() -> None:
    assert SingleProcess(device_id=5).placement == Placement(device_id=5)


def test_a_barrier_of_threads_waits_for_the_last_one() -> None:
    order: list[str] = []
    late = threading.Event()

    def work(topology: ClusterTopology) -> None:
        topology.initialize()
        if topology.placement.rank_id == 1:
            late.wait(30)
            order.append("late")
        else:
            late.set()
        topology.barrier()
        order.append("through")

    ThreadCluster(2).run(work)
    assert order == ["late", "through", "through"]


def test_a_thread_that_fails_wakes_the_others() -> None:
    def work(topology: ClusterTopology) -> None:
        topology.initialize()
        if topology.placement.rank_id == 1:
            raise LookupError("rank 1 has no data")
        topology.barrier()

    with pytest.raises(LookupError, match="rank 1 has no data"):
        ThreadCluster(2).run(work)


def test_threads_that_do_not_come_are_an_error() -> None:
    def work(topology: ClusterTopology) -> None:
        if topology.placement.rank_id == 0:
            topology.initialize()

    with pytest.raises(RuntimeFailureError, match="did not come"):
        ThreadCluster(2, timeout_s=0.1).run(work)
