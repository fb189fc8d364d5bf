"""Short JSON lines over a socket, for launchers that watch each other.

Only data is sent, of a bounded size; a peer that sends anything else, or nothing for too
long, is dropped.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

LONGEST = 32 * 1024
"""Bytes of a message."""

_MOST_UNSENT = 8 * LONGEST

Message = Mapping[str, Any]
T = TypeVar("T")


class BadMessageError(Exception):
    """What came is no message of a launcher."""


def field(message: Any, name: str, kind: type[T]) -> T:
    """A member of a message.

    Raises:
        BadMessageError: it is missing or of another type.
    """
    value = message.get(name) if isinstance(message, dict) else None
    if not isinstance(value, kind):
        raise BadMessageError(name)
    return value


class Lines:
    """One connection, watched by a selector whose keys hold what to call.

    Attributes:
        heard: when something came last, in the clock's seconds.
        closed: whether the connection is gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        selector: selectors.BaseSelector,
        clock: Callable[[], float],
        on_message: Callable[[Message], None],
        on_close: Callable[[str], None],
    ) -> None:
        """Take over a connected socket.

        Args:
            connection: the socket.
            selector: calls us through its keys' data.
            clock: seconds that pass.
            on_message: takes each message; may raise BadMessageError.
            on_close: takes the reason, once, when the other side is gone.
        """
        connection.setblocking(False)
        self._socket, self._selector, self._clock = connection, selector, clock
        self._on_message, self._on_close = on_message, on_close
        self._in, self._out = bytearray(), bytearray()
        self.heard = clock()
        self.closed = False
        selector.register(connection, selectors.EVENT_READ, self._ready)

    def send(self, message: Message) -> None:
        """Send a message, now or as soon as there is room."""
        if self.closed:
            return
        self._out += json.dumps(message).encode() + b"\n"
        if len(self._out) > _MOST_UNSENT:
            self._lose("does not read what is sent")
            return
        self._flush()

    def close(self) -> None:
        """Close the connection; what is unsent is dropped."""
        if not self.closed:
            self.closed = True
            self._selector.unregister(self._socket)
            self._socket.close()

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as exc:
            self._lose(exc.strerror or str(exc))
            return
        if not data:
            self._lose("closed the connection")
            return
        self.heard = self._clock()
        self._in += data
        while not self.closed and (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._take(line)
        if len(self._in) > LONGEST:
            self._lose("sent a message that is too long")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line[:LONGEST])
            if not isinstance(message, dict):
                raise BadMessageError("not an object")
            self._on_message(message)
        except (ValueError, RecursionError, BadMessageError):
            self._lose("sent something that is no message of a launcher")

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as exc:
            self._lose(exc.strerror or str(exc))
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        with suppress(KeyError):
            self._selector.modify(self._socket, events, self._ready)

    def _lose(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_close(reason)
