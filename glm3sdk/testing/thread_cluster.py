"""Ranks as threads of one process, for tests of what meets other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from glm3sdk.errors import RuntimeFailureError, ServiceClosedError
from glm3sdk.ports.cluster_topology import ClusterTopology, Placement

T = TypeVar("T")


class ThreadCluster:
    """A job whose ranks are threads; each takes its own topology from `topologies`.

    Attributes:
        topologies: one `ClusterTopology` a rank.
    """

    def __init__(self, rank_size: int, *, timeout_s: float = 60.0) -> None:
        self._meeting = threading.Barrier(rank_size, timeout=timeout_s)
        self._values: list[float] = [0.0] * rank_size
        self.topologies: tuple[ClusterTopology, ...] = tuple(
            _Rank(self, Placement(rank_id, rank_size, rank_id, rank_id, "127.0.0.1"))
            for rank_id in range(rank_size)
        )

    def run(self, work: Callable[[ClusterTopology], T]) -> list[T]:
        """Run `work` on every rank at once; returns what each returned, in their order.

        Raises:
            Exception: the first one of the lowest rank; the others are woken.
        """

        def guarded(topology: ClusterTopology) -> T:
            try:
                return work(topology)
            except BaseException:
                # The others would wait for a rank that never comes.
                self._meeting.abort()
                raise

        with ThreadPoolExecutor(len(self.topologies)) as pool:
            futures = [pool.submit(guarded, topology) for topology in self.topologies]
            errors = [error for future in futures if (error := future.exception()) is not None]
        # A rank that was only woken tells less than the one that failed.
        errors.sort(key=lambda error: isinstance(error, RuntimeFailureError))
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def exchange(self, rank_id: int, value: float) -> tuple[float, ...]:
        """Put a rank's value, and return everybody's."""
        self._values[rank_id] = value
        self._meet()
        values = tuple(self._values)
        # Nobody may put the next one before all have read.
        self._meet()
        return values

    def _meet(self) -> None:
        try:
            self._meeting.wait()
        except threading.BrokenBarrierError as exc:
            raise RuntimeFailureError("another rank ended, or did not come") from exc


class _Rank:
    def __init__(self, cluster: ThreadCluster, placement: Placement) -> None:
        self._cluster = cluster
        self.placement = placement
        self._open: bool | None = None

    def initialize(self) -> None:
        if self._open is False:
            raise ServiceClosedError(f"rank {self.placement.rank_id} has left its job")
        if self._open is None:
            self._open = True
            self.barrier()

    def barrier(self) -> None:
        self.all_gather(0.0)

    def all_gather(self, value: float) -> tuple[float, ...]:
        if not self._open:
            raise ServiceClosedError(f"rank {self.placement.rank_id} is not in its job")
        return self._cluster.exchange(self.placement.rank_id, float(value))

    def finalize(self) -> None:
        if self._open:
            self._open = False
