"""The contract of cluster topologies: tests that every adapter and every fake passes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from glm3sdk.errors import ServiceClosedError
from glm3sdk.ports.cluster_topology import ClusterTopology, Placement

VALUES = (0.0, -0.0, 1.0 / 3.0, 1e300, -5e-324, math.inf, float(2**53 - 1))


class RunRanks(Protocol):
    """Runs something on every rank of a job."""

    def __call__(self, work: Callable[[ClusterTopology], Any]) -> list[Any]:
        """Run `work` with each rank's topology, at once; returns their results by rank.

        The topologies are fresh. `work` is a module's function where ranks are processes.
        """


class ClusterTopologyContract:
    """Derive a test class from it and give it a fixture `run_ranks`."""

    @pytest.fixture
    def run_ranks(self) -> RunRanks:
        """Runs a function on every rank."""
        raise NotImplementedError("override the `run_ranks` fixture")

    def test_ranks_are_counted_from_zero(self, run_ranks: RunRanks) -> None:
        found = run_ranks(tell_placement)
        assert [placement.rank_id for placement in found] == list(range(len(found)))
        assert {placement.rank_size for placement in found} == {len(found)}
        places = {(placement.server_id, placement.local_rank) for placement in found}
        assert len(places) == len(found)

    def test_every_rank_gets_every_value_exactly(self, run_ranks: RunRanks) -> None:
        found = run_ranks(gather_values)
        expected = [[_bits(value + rank_id) for rank_id in range(len(found))] for value in VALUES]
        assert found == [expected] * len(found)

    def test_entering_and_leaving_twice_does_nothing(self, run_ranks: RunRanks) -> None:
        for size in run_ranks(enter_and_leave_twice):
            assert size >= 1

    def test_collectives_outside_the_job_are_refused(self, run_ranks: RunRanks) -> None:
        assert all(run_ranks(call_outside))


def tell_placement(topology: ClusterTopology) -> Placement:
    """What the rank says of itself, before it enters."""
    return topology.placement


def gather_values(topology: ClusterTopology) -> list[list[bytes]]:
    """The bits of what is gathered, for each of VALUES."""
    topology.initialize()
    gathered = [topology.all_gather(value + topology.placement.rank_id) for value in VALUES]
    topology.barrier()
    topology.finalize()
    return [[_bits(value) for value in values] for values in gathered]


def enter_and_leave_twice(topology: ClusterTopology) -> int:
    """How many values the rank got in between."""
    topology.finalize()
    topology.initialize()
    topology.initialize()
    size = len(topology.all_gather(1.0))
    topology.finalize()
    topology.finalize()
    return size


def call_outside(topology: ClusterTopology) -> bool:
    """Whether every collective is refused before the rank enters and after it left."""
    calls: tuple[Callable[[], Any], ...] = (topology.barrier, lambda: topology.all_gather(1.0))

    def refused() -> bool:
        for call in calls:
            try:
                call()
            except ServiceClosedError:
                continue
            return False
        return True

    before = refused()
    topology.initialize()
    topology.finalize()
    return before and refused()


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)
