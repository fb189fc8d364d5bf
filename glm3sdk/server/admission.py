"""How many generations may run and wait; who comes too late is told when to come back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glm3sdk.server.failures import ApiError, unavailable

_LONGEST_RETRY_S = 60
# The weight of the newest reply in the average; about the last ten count.
_NEWEST = 0.2


class Admission:
    """Counts the generations that were let in. Belongs to the event loop's thread.

    Args:
        slots: generations that run side by side.
        max_queue: generations that may wait beside those.

    Attributes:
        admitted: how many are running or waiting.
    """

    def __init__(self, *, slots: int, max_queue: int) -> None:
        self.slots = slots
        self.capacity = slots + max_queue
        self.admitted = 0
        self.closed = False
        self._usual_s = 1.0

    @contextmanager
    def admit(self, count: int, *, param: str = "n") -> Iterator[None]:
        """Let in this many generations of one request, until the block ends.

        Args:
            count: how many.
            param: the parameter that says so.

        Raises:
            ApiError: 503 while stopping, 400 for more than would ever fit, 429 while full.
        """
        if self.closed:
            raise unavailable()
        if count > self.capacity:
            raise ApiError(
                400,
                f"{count} replies at once, and this server takes at most {self.capacity}; "
                f"lower {param}",
                param=param,
                code="too_many_replies",
            )
        if self.admitted + count > self.capacity:
            raise ApiError(
                429,
                f"the queue is full: {self.admitted} replies are running or waiting, of "
                f"{self.capacity}; try again later",
                code="queue_full",
                headers={"Retry-After": str(self._retry_after_s())},
            )
        self.admitted += count
        started = time.monotonic()
        try:
            yield
        finally:
            self.admitted -= count
            lasted = time.monotonic() - started
            self._usual_s += _NEWEST * (lasted - self._usual_s)

    def _retry_after_s(self) -> int:
        """About when a place will be free: the usual stay, spread over the places."""
        return max(1, min(_LONGEST_RETRY_S, math.ceil(self._usual_s / self.capacity)))
