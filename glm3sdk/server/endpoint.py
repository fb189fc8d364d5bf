"""What the generating endpoints share: read, let in, run while somebody waits, count."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import attrs
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from glm3sdk.server.admission import Admission
from glm3sdk.server.bodies import parse_body, read_body
from glm3sdk.server.exchange import CLIENT_LEFT, ClientLeft, Exchange
from glm3sdk.server.failures import ApiError, as_api_error
from glm3sdk.server.metrics import Metrics
from glm3sdk.server.schemas import ChatRequest, CompletionRequest
from glm3sdk.services.chat import Glm3Service

_Asked = TypeVar("_Asked", ChatRequest, CompletionRequest)


@attrs.frozen
class Server:
    """What the endpoints work with.

    Attributes:
        service: the loaded model.
        model_name: the name under which clients ask for it.
        admission: who is let in.
        metrics: what is counted.
        max_body_bytes: the largest body.
        request_timeout_s: the longest time from the request's first byte to the answer's last.
    """

    service: Glm3Service
    model_name: str
    admission: Admission
    metrics: Metrics
    max_body_bytes: int
    request_timeout_s: float

    def check_model(self, name: str | None) -> None:
        """Raise an ApiError for a model that is not served here."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"no model {name!r:.80} here (known: {self.model_name})",
                param="model",
                code="model_not_found",
            )


class Endpoint(ABC, Generic[_Asked]):
    """An ASGI application that answers one kind of request."""

    name: str
    schema: type[_Asked]

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever goes wrong is answered in OpenAI's shape."""
        started = time.monotonic()
        exchange = Exchange(scope, receive, send)
        status = CLIENT_LEFT
        try:
            async with asyncio.timeout(self.server.request_timeout_s):
                await self._serve(HttpRequest(scope, receive), exchange)
            status = exchange.status or status
        except ClientLeft:
            pass
        except Exception as exc:
            failure = as_api_error(exc)
            status = failure.status
            await exchange.fail(failure)
        finally:
            seconds = time.monotonic() - started
            self.server.metrics.ended(self.name, status=status, seconds=seconds)

    async def _serve(self, request: HttpRequest, exchange: Exchange) -> None:
        body = await read_body(request, most=self.server.max_body_bytes)
        asked = parse_body(self.schema, body)
        self.server.check_model(asked.model)
        with self.server.admission.admit(self.count(asked)):
            await exchange.while_wanted(self.answer(asked, exchange))

    @abstractmethod
    def count(self, asked: _Asked) -> int:
        """How many generations a request asks for."""

    @abstractmethod
    async def answer(self, asked: _Asked, exchange: Exchange) -> None:
        """Generate, and write the answer."""
