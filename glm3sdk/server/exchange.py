"""One request and its answer: JSON at once, or server-sent events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from glm3sdk.server.failures import ApiError

CLIENT_LEFT = 499
"""The status under which requests are counted whose client went away."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Exchange:
    """The answer to one request.

    Args:
        scope: the request's scope.
        receive: gives the request's messages; its body was read already.
        send: takes the answer's.

    Attributes:
        status: what was answered; None until then.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send_message = send
        self._streaming = False
        self.status: int | None = None

    async def while_wanted(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, unless the client goes away: then it is cancelled at once.

        Raises:
            ClientLeft: it went away.
        """
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(self._until_left())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientLeft
        finally:
            leaving.cancel()
            working.cancel()
            await asyncio.wait({working, leaving})
        working.result()

    async def answer(self, content: dict[str, Any]) -> None:
        """Answer with a JSON object."""
        await self._respond(JSONResponse(content))

    async def event(self, content: dict[str, Any]) -> None:
        """Send one server-sent event; the first one begins the answer."""
        if not self._streaming:
            self._streaming, self.status = True, 200
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(json.dumps(content, ensure_ascii=False, separators=(",", ":")))

    async def done(self) -> None:
        """End the events."""
        await self._write("[DONE]")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Answer with an error; in a stream it is the last event."""
        if not self._streaming:
            await self._respond(error.response())
            return
        self.status = error.status
        await self.event(error.body())
        await self.done()

    async def _respond(self, response: Response) -> None:
        self.status = response.status_code
        await response(self._scope, self._receive, self._send)

    async def _send(self, message: Message) -> None:
        try:
            await self._send_message(message)
        except OSError as exc:
            raise ClientLeft from exc

    async def _write(self, data: str) -> None:
        # JSON holds no newline, so one line is one event.
        body = f"data: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
