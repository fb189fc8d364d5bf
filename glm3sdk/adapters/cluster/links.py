"""How launchers of a job keep together: the leading one, and the others that watch it.

Each sends something every `every_s` seconds; who is silent for `silence_s` is taken for gone,
for a link that is cut closes no connection. The leader listens on its own address only and
compares a token, so that launchers of another job, or what else finds the port, stay out.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import attrs

from glm3sdk.adapters.cluster.coordination import (
    Coordination,
    Failure,
    Finish,
    Order,
    Start,
    Stop,
)
from glm3sdk.adapters.cluster.lines import BadMessageError, Lines, Message, field
from glm3sdk.errors import LaunchError

_RETRY_S = 0.5
_GOODBYE_S = 5.0
_MOST_STRANGERS = 16
_PING = {"ping": 0}


@attrs.frozen(kw_only=True)
class Pace:
    """How launchers watch each other, in seconds.

    Attributes:
        every_s: between two signs of life.
        silence_s: after which a launcher is taken for gone.
        join_s: for all launchers to come.
    """

    every_s: float = 2.0
    silence_s: float = 20.0
    join_s: float = 600.0


class Link(Protocol):
    """One launcher's place among the others. Orders come through `obey`, given to `begin`."""

    def begin(self, selector: selectors.BaseSelector, obey: Callable[[Order, int], None]) -> None:
        """Start to meet the others; `obey` gets each order, and the scheduler's port to use."""

    def tick(self) -> None:
        """Time has passed."""

    def done(self) -> None:
        """Every rank of this node has ended well."""

    def fail(self, failure: Failure) -> None:
        """The job should end."""

    def ended(self) -> None:
        """No rank of this node is left, after a stop."""

    def close(self) -> None:
        """Leave."""


class LeadingLink:
    """The leading launcher's: it alone decides."""

    def __init__(
        self,
        coordination: Coordination,
        *,
        own: int,
        choose_port: Callable[[int], int],
        address: tuple[str, int] | None = None,
        token: str = "",
        nproc: int | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen for the others.

        Args:
            coordination: what each event leads to.
            own: this node's number in it.
            choose_port: the scheduler's port in an attempt.
            address: where to listen; None for a job of one node.
            token: what the others must show.
            nproc: ranks that every node must have; None where a rank table tells.
            pace: how launchers watch each other.
            clock: seconds that pass.

        Raises:
            LaunchError: the address is not this host's, or the port is in use.
        """
        self._coordination, self._own, self._choose_port = coordination, own, choose_port
        self._token, self._nproc = token, nproc
        self._pace, self._clock = pace or Pace(), clock
        self._members: dict[int, Lines] = {}
        self._strangers: list[Lines] = []
        self._sent = clock()
        self._join_until = clock() + self._pace.join_s
        self._over = False
        self._socket = None if address is None else listen(*address)

    def begin(self, selector: selectors.BaseSelector, obey: Callable[[Order, int], None]) -> None:
        """Let the others come."""
        self._selector, self._obey = selector, obey
        if self._socket is not None:
            selector.register(self._socket, selectors.EVENT_READ, self._accept)
        self._give(self._coordination.begin())

    def tick(self) -> None:
        """Send a sign of life, and look for those who give none."""
        now = self._clock()
        if now - self._sent >= self._pace.every_s:
            self._sent = now
            for lines in list(self._members.values()):
                lines.send(_PING)
        for stranger in list(self._strangers):
            if now - stranger.heard > self._pace.silence_s:
                self._strangers.remove(stranger)
                stranger.close()
        for node, lines in list(self._members.items()):
            if now - lines.heard > self._pace.silence_s:
                lines.close()
                self._lose(node, f"was silent for {self._pace.silence_s:g} s")
        missing = self._coordination.missing
        if missing and now > self._join_until and not self._over:
            names = ", ".join(map(str, missing))
            self.fail(
                Failure(
                    f"no launcher of node {names} came within {self._pace.join_s:g} s; start "
                    "`glm3 launch` there with the same options and its own --node-rank"
                )
            )
        self._give(self._coordination.tick(now))

    def done(self) -> None:
        """Every rank of this node has ended well."""
        self._give(self._coordination.done(self._own))

    def fail(self, failure: Failure) -> None:
        """The job should end."""
        self._give(self._coordination.fail(failure))

    def ended(self) -> None:
        """No rank of this node is left, after a stop."""
        self._give(self._coordination.ended(self._own, self._clock()))

    def close(self) -> None:
        """Wait a little for the others to take the news, then leave."""
        until = self._clock() + _GOODBYE_S
        while self._over and self._members and (left := until - self._clock()) > 0:
            for key, mask in self._selector.select(min(left, 0.2)):
                if key.fileobj is not self._socket:
                    key.data(mask)
        for lines in [*self._members.values(), *self._strangers]:
            lines.close()
        if self._socket is not None:
            with suppress(KeyError):
                self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _give(self, order: Order | None) -> None:
        if order is None:
            return
        port = self._choose_port(order.attempt) if isinstance(order, Start) else 0
        self._over = self._over or isinstance(order, Finish)
        for lines in list(self._members.values()):
            lines.send(_written(order, port))
        self._obey(order, port)

    def _accept(self, _mask: int) -> None:
        if self._socket is None:
            return
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        if len(self._strangers) >= _MOST_STRANGERS:
            connection.close()
            return
        stranger: Lines

        def take(message: Message) -> None:
            self._take(stranger, message)

        def forget(reason: str) -> None:
            self._forget(stranger, reason)

        stranger = Lines(
            connection,
            selector=self._selector,
            clock=self._clock,
            on_message=take,
            on_close=forget,
        )
        self._strangers.append(stranger)

    def _take(self, lines: Lines, message: Message) -> None:
        if lines in self._strangers:
            self._greet(lines, field(message, "hello", dict))
            return
        node = next(node for node, member in self._members.items() if member is lines)
        # What a node sent before it heard of the newest attempt is about the one before.
        current = message.get("attempt") == self._coordination.attempt
        if "done" in message and current:
            self._give(self._coordination.done(node))
        elif "failed" in message and current:
            self._give(self._coordination.fail(read_failure(field(message, "failed", dict))))
        elif "ended" in message and current:
            self._give(self._coordination.ended(node, self._clock()))

    def _greet(self, lines: Lines, hello: Mapping[str, Any]) -> None:
        token, node = field(hello, "token", str), field(hello, "node", int)
        nproc = field(hello, "nproc", int)
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            refusal = "it belongs to another job (GLM3SDK_JOB_TOKEN differs)"
        elif node not in self._coordination.missing:
            refusal = f"node {node} is there already, or is none of this job's nodes"
        elif self._nproc is not None and nproc != self._nproc:
            refusal = (
                f"it starts {nproc} ranks and node 0 starts {self._nproc}; pass the same "
                "--nproc on every node, or a rank table"
            )
        else:
            self._strangers.remove(lines)
            self._members[node] = lines
            self._give(self._coordination.joined(node))
            return
        lines.send({"refused": refusal})
        self._strangers.remove(lines)
        lines.close()

    def _forget(self, lines: Lines, reason: str) -> None:
        if lines in self._strangers:
            self._strangers.remove(lines)
            return
        for node, member in list(self._members.items()):
            if member is lines:
                self._lose(node, reason)

    def _lose(self, node: int, reason: str) -> None:
        del self._members[node]
        failure = Failure(f"node {node} is gone: its launcher {reason}")
        self._give(self._coordination.lost(node, failure))


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
            self._lines.send(_PING)

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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at one address of this host.

    Raises:
        LaunchError: the address is not this host's, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as exc:
        listening.close()
        raise LaunchError(
            f"port {port} of {host} cannot be used: {exc.strerror}; pass another --master-port, "
            "or as --master-addr an address of node 0"
        ) from exc
    listening.setblocking(False)
    return listening


def read_failure(values: Mapping[str, Any]) -> Failure:
    """A failure that another launcher tells of.

    Raises:
        BadMessageError: these are not its values.
    """
    lines = field(values, "last_lines", list)
    if not all(isinstance(line, str) for line in lines):
        raise BadMessageError("last_lines")
    return Failure(
        field(values, "message", str),
        # An exit code of 0 would call a failure a success.
        min(255, max(1, field(values, "exit_code", int))),
        tuple(lines),
        restart=field(values, "restart", bool),
        asked=field(values, "asked", bool),
    )


def _written(order: Order, port: int) -> dict[str, Any]:
    if isinstance(order, Start):
        return {"start": order.attempt, "port": port}
    if isinstance(order, Stop):
        return {"stop": attrs.asdict(order.failure)}
    return {"finish": None if order.failure is None else attrs.asdict(order.failure)}
