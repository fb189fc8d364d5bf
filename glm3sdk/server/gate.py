"""What every request passes first: its host, its key, and the headers of every answer."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm3sdk.server.failures import ApiError

# The page and probes carry no secret; everything else asks for the key.
_OPEN_PATHS = ("/", "/healthz", "/readyz")
_OPEN_FOLDER = "/static/"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """Refuses strangers and puts the security headers on what goes out.

    Args:
        app: what lies behind.
        api_key: what a client must bring as `Authorization: Bearer`, or None.
        allowed_hosts: names in `Host` that are answered; None answers all. A page of
            another site that had its name point here would come with that name.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, allowed_hosts: Collection[str] | None
    ) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                # Files of a wheel all have one date: neither age nor ETag tells two versions apart.
                headers["Cache-Control"] = "no-store"
            await send(message)

        refusal = self._refusal(scope)
        app = self._app if refusal is None else refusal.response()
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = _without_port(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return ApiError(
                421,
                f"this server does not answer for the host {host!r:.80}; "
                "start it with --allow-host to let it",
                code="unknown_host",
            )
        if self._api_key is None or scope["path"] in _OPEN_PATHS:
            return None
        if scope["path"].startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS":
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # compare_digest takes as long for a key that is nearly right as for any other.
        if scheme.lower() == "bearer" and hmac.compare_digest(
            key.strip().encode("utf-8", "surrogateescape"), self._api_key
        ):
            return None
        return ApiError(
            401,
            "the API key is missing or wrong; send 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()
