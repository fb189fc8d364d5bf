"""Every other launcher's link: it reports to the leading one, and does what that one says."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

import attrs

from glm3sdk.adapters.cluster.coordination import Failure, Finish, Order, Start, Stop
from glm3sdk.adapters.cluster.lines import Lines, Message, field
from glm3sdk.adapters.cluster.links import PING, Pace, read_failure

_RETRY_S = 0.5


class MemberLink:
    """Any other launcher's: it reports, and does what the leading one says."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        node: int,
        nproc: int,
        token: str = "",
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to meet the leading launcher.

        Args:
            address: where it listens.
            node: this node's number.
            nproc: ranks of this node.
            token: of the job.
            pace: how launchers watch each other.
            clock: seconds that pass.
        """
        self._address = address
        self._hello = {"token": token, "node": node, "nproc": nproc}
        self._pace, self._clock = pace or Pace(), clock
        self._lines: Lines | None = None
        self._join_until = clock() + self._pace.join_s
        self._try_at = self._sent = clock()
        self._problem = ""
        self._attempt = 0
        self._running = False
        self._failure: Failure | None = None
        self._over = False

    def begin(self, selector: selectors.BaseSelector, obey: Callable[[Order, int], None]) -> None:
        """Go and meet it."""
        self._selector, self._obey = selector, obey
        self.tick()

    def tick(self) -> None:
        """Send a sign of life, and see whether there is one."""
        now = self._clock()
        if self._over or self._failure is not None:
            return
        if self._lines is None:
            self._meet(now)
        elif now - self._lines.heard > self._pace.silence_s:
            self._lines.close()
            self._lose(f"was silent for {self._pace.silence_s:g} s")
        elif now - self._sent >= self._pace.every_s:
            self._sent = now
            self._lines.send(PING)

    def done(self) -> None:
        """Every rank of this node has ended well."""
        self._report({"done": True})

    def fail(self, failure: Failure) -> None:
        """The job should end: node 0 decides; before it was met, there is nothing to end."""
        if self._lines is None:
            self._finish(failure)
        else:
            self._report({"failed": attrs.asdict(failure)})

    def ended(self) -> None:
        """No rank of this node is left, after a stop."""
        self._running = False
        if self._failure is not None:
            self._finish(self._failure)
        else:
            self._report({"ended": True})

    def close(self) -> None:
        """Leave."""
        self._over = True
        if self._lines is not None:
            self._lines.close()

    def _meet(self, now: float) -> None:
        if now < self._try_at:
            return
        self._try_at = now + _RETRY_S
        try:
            connection = socket.create_connection(self._address, timeout=_RETRY_S)
        except OSError as exc:
            self._problem = exc.strerror or str(exc)
            if now > self._join_until:
                host, port = self._address
                self._finish(
                    Failure(
                        f"node 0's launcher does not answer at {host} port {port} after "
                        f"{self._pace.join_s:g} s ({self._problem}); see whether it runs, and "
                        "whether the port is open between the nodes"
                    )
                )
            return
        self._lines = Lines(
            connection,
            selector=self._selector,
            clock=self._clock,
            on_message=self._take,
            on_close=self._lose,
        )
        self._lines.send({"hello": self._hello})

    def _take(self, message: Message) -> None:
        if "refused" in message:
            self._finish(Failure(f"node 0 refused this launcher: {message['refused']}"))
        elif "start" in message:
            self._attempt, self._running = field(message, "start", int), True
            self._obey(Start(self._attempt), field(message, "port", int))
        elif "stop" in message:
            self._obey(Stop(read_failure(field(message, "stop", dict))), 0)
        elif "finish" in message:
            told = message["finish"]
            self._finish(None if told is None else read_failure(field(message, "finish", dict)))

    def _report(self, message: dict[str, Any]) -> None:
        if self._lines is not None:
            self._lines.send(message | {"attempt": self._attempt})

    def _lose(self, reason: str) -> None:
        if self._over or self._failure is not None:
            return
        self._failure = Failure(f"node 0 is gone: its launcher {reason}")
        if self._running:
            self._obey(Stop(self._failure), 0)
        else:
            self._finish(self._failure)

    def _finish(self, failure: Failure | None) -> None:
        if not self._over:
            self.close()
            self._obey(Finish(failure), 0)
