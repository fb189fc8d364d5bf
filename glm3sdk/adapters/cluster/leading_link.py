"""The leading launcher's link: it listens, and alone decides."""

from __future__ import annotations

import hmac
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from glm3sdk.adapters.cluster.coordination import Coordination, Failure, Finish, Order, Start
from glm3sdk.adapters.cluster.lines import Lines, Message, field
from glm3sdk.adapters.cluster.links import PING, Pace, read_failure, written
from glm3sdk.errors import LaunchError

_GOODBYE_S = 5.0
_MOST_STRANGERS = 16


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
                lines.send(PING)
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
            lines.send(written(order, port))
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
