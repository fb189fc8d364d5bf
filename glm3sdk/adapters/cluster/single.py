"""A job of one process."""

from __future__ import annotations

from glm3sdk.errors import ServiceClosedError
from glm3sdk.ports.cluster_topology import Placement


class SingleProcess:
    """A `ClusterTopology` without others; it needs no framework.

    Attributes:
        placement: rank 0 of 1.
    """

    def __init__(self, *, device_id: int = 0) -> None:
        self.placement = Placement(device_id=device_id)
        self._open: bool | None = None

    def initialize(self) -> None:
        """There is nobody to meet."""
        self._check_not_left()
        self._open = True

    def barrier(self) -> None:
        """Return at once."""
        self._check_open()

    def all_gather(self, value: float) -> tuple[float, ...]:
        """The value alone."""
        self._check_open()
        return (float(value),)

    def finalize(self) -> None:
        """Nothing works after it."""
        if self._open:
            self._open = False

    def _check_not_left(self) -> None:
        if self._open is False:
            raise ServiceClosedError("this process has left its job; it cannot come back")

    def _check_open(self) -> None:
        self._check_not_left()
        if self._open is None:
            raise ServiceClosedError("the job is not entered yet; call initialize() first")
