"""What the ranks of a run agree on: when to stop, and whether all of them could do a thing.

A rank that fails alone leaves the others waiting for it. So what may fail on one rank is done
`together`: then every rank knows, and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import attrs

from glm3sdk.domain.sharding import Strategy
from glm3sdk.errors import Glm3Error, RuntimeFailureError
from glm3sdk.ports.cluster_topology import ClusterTopology

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class RunRanks:
    """This process among the ranks of a run; without a topology, it is alone.

    Every rank calls the same methods in the same order.

    Attributes:
        topology: the job, entered; None for a process alone.
        spread: how the ranks store tensors, given their names.
        data: how many of the ranks, or groups of them, train on data of their own.
    """

    topology: ClusterTopology | None = None
    spread: Callable[[Iterable[str]], Strategy] | None = None
    data: int = 1

    @property
    def rank_id(self) -> int:
        """This rank's number."""
        return self.topology.placement.rank_id if self.topology else 0

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.topology.placement.rank_size if self.topology else 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank_id == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        return 1.0 in self.each(float(flag))

    def each(self, value: float) -> tuple[float, ...]:
        """Every rank's value, in the order of the ranks."""
        return self.topology.all_gather(value) if self.topology else (value,)

    def together(self, work: Callable[[], T]) -> T:
        """Do a thing that may fail; if it does on one rank, every rank raises.

        Raises:
            Exception: this rank's own.
            RuntimeFailureError: another rank's work failed.
        """
        try:
            result = work()
        except Exception:
            with suppress(Glm3Error):  # the others may be gone: this rank's own error says more
                self.each(1.0)
            raise
        if 1.0 in (failed := self.each(0.0)):
            raise RuntimeFailureError(
                f"rank {failed.index(1.0)} failed and said why; this rank ends with it"
            )
        return result

    def lead(self, work: Callable[[], T]) -> T | None:
        """Do a thing on the first rank alone; every rank waits for it, and raises if it fails."""
        return self.together(lambda: work() if self.leads else None)


ALONE = RunRanks()
"""A process that shares its run with no other."""
