"""A server's application, asked without a server."""

from __future__ import annotations

import asyncio
from typing import Any


def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """One request, without a socket between."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
            "client": None,
            "server": None,
        }
        await asyncio.wait_for(app(scope, receive, send), timeout=60)

    asyncio.run(run())
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])
