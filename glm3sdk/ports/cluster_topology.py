"""The port of cluster topologies: who this process is in a job, and how it meets the others."""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen
class Placement:
    """One process of a job.

    Attributes:
        rank_id: its number in the job.
        rank_size: processes of the job.
        local_rank: its number on its server.
        device_id: number of its card on the server.
        server_id: address or name of the server; "" where nobody told.
    """

    rank_id: int = 0
    rank_size: int = 1
    local_rank: int = 0
    device_id: int = 0
    server_id: str = ""


class ClusterTopology(Protocol):
    """How ranks meet. Contract: `glm3sdk.testing.ClusterTopologyContract`.

    Every rank calls the collective methods in the same order.
    """

    @property
    def placement(self) -> Placement:
        """This process; known before `initialize`."""

    def initialize(self) -> None:
        """Meet the other ranks; a second call does nothing.

        Raises:
            RuntimeFailureError: the others did not come.
        """

    def barrier(self) -> None:
        """Return once every rank has called this."""

    def all_gather(self, value: float) -> tuple[float, ...]:
        """Every rank's value, exactly, in the order of the ranks."""

    def finalize(self) -> None:
        """Leave the others; a second call, or one before `initialize`, does nothing.

        After it the collective methods raise ServiceClosedError.
        """
