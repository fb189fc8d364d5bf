"""Decides when the nodes of a job start, stop, start again and are done. Pure.

The leading launcher holds it; it is told what happens on every node, its own included, and
answers with orders that all nodes obey. A job of one node is led by its only launcher.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

import attrs

_LONGEST_DELAY_S = 60.0


@attrs.frozen
class Failure:
    """Why a job ends before its work is done.

    Attributes:
        message: one line.
        exit_code: what every launcher ends with.
        last_lines: what a failed process wrote last.
        restart: whether starting all ranks again may help.
        asked: a person or the platform wanted the end, so ranks get time to save.
    """

    message: str
    exit_code: int = 1
    last_lines: tuple[str, ...] = ()
    restart: bool = False
    asked: bool = False


@attrs.frozen
class Start:
    """Start the node's processes."""

    attempt: int


@attrs.frozen
class Stop:
    """End the node's ranks, then say so."""

    failure: Failure


@attrs.frozen
class Finish:
    """The job is over; with the failure, if it failed."""

    failure: Failure | None


Order = Start | Stop | Finish


class _State(Enum):
    JOINING = auto()
    RUNNING = auto()
    STOPPING = auto()
    WAITING = auto()
    OVER = auto()


class Coordination:
    """What each event leads to; methods return the order to give, or None.

    Attributes:
        attempt: how often the job was started before.
        failure: what ends the current attempt, once something does.
    """

    def __init__(
        self, *, own: int, members: Iterable[int], max_restarts: int = 0, delay_s: float = 3.0
    ) -> None:
        """Wait for the members.

        Args:
            own: this node's number; -1 where only the scheduler runs here.
            members: the other nodes' numbers.
            max_restarts: how often all ranks start again after a failure.
            delay_s: before the first of these; twice as long before each next one.
        """
        self.attempt = 0
        self.failure: Failure | None = None
        self._own = own
        self._missing = set(members)
        self._nodes = {own}
        self._done: set[int] = set()
        self._ended: set[int] = set()
        self._max_restarts, self._delay_s = max_restarts, delay_s
        self._start_at = 0.0
        self._state = _State.JOINING

    @property
    def missing(self) -> tuple[int, ...]:
        """Nodes that have not joined."""
        return tuple(sorted(self._missing))

    @property
    def delay_s(self) -> float:
        """Seconds before the next attempt."""
        return min(_LONGEST_DELAY_S, self._delay_s * float(2 ** min(self.attempt, 20)))

    @property
    def restarts_left(self) -> int:
        """How often the job may still start again."""
        return max(0, self._max_restarts - self.attempt)

    def begin(self) -> Order | None:
        """This node is ready."""
        return self._start_if_complete()

    def joined(self, node: int) -> Order | None:
        """Another node is ready; it is one of `missing`."""
        self._missing.discard(node)
        self._nodes.add(node)
        return self._start_if_complete()

    def done(self, node: int) -> Order | None:
        """Every rank of a node has ended well."""
        self._done.add(node)
        if self._state is _State.RUNNING and self._done == self._nodes:
            return self._finish(None)
        return None

    def fail(self, failure: Failure) -> Order | None:
        """Something ends the attempt: a rank failed, or a person wants the end."""
        if self._state is _State.OVER:
            return None
        if self._state in (_State.JOINING, _State.WAITING):
            return self._finish(failure)
        if self._state is _State.STOPPING:
            # The first failure is the cause of the others; but a wish to end counts.
            if failure.asked or self.failure is None:
                self.failure = failure
            elif not failure.restart:
                self.failure = attrs.evolve(self.failure, restart=False)
            return None
        self.failure = failure
        self._state = _State.STOPPING
        return Stop(failure)

    def lost(self, node: int, failure: Failure) -> Order | None:
        """A node's launcher is gone: nothing more will come from it."""
        self._nodes.discard(node)
        order = self.fail(attrs.evolve(failure, restart=False))
        return order or self._after_end(0.0)

    def ended(self, node: int, now: float) -> Order | None:
        """No rank of a node is left, after a stop."""
        self._ended.add(node)
        return self._after_end(now)

    def tick(self, now: float) -> Order | None:
        """Time has passed."""
        if self._state is _State.WAITING and now >= self._start_at:
            self.attempt += 1
            return self._start()
        return None

    def _start_if_complete(self) -> Order | None:
        if self._state is _State.JOINING and not self._missing:
            return self._start()
        return None

    def _start(self) -> Order:
        self.failure = None
        self._done.clear()
        self._ended.clear()
        self._state = _State.RUNNING
        return Start(self.attempt)

    def _after_end(self, now: float) -> Order | None:
        if self._state is not _State.STOPPING or not self._nodes <= self._ended:
            return None
        if self.failure is not None and self.failure.restart and self.restarts_left:
            self._state = _State.WAITING
            self._start_at = now + self.delay_s
            return None
        return self._finish(self.failure)

    def _finish(self, failure: Failure | None) -> Order:
        self.failure = failure
        self._state = _State.OVER
        return Finish(failure)
