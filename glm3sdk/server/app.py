"""The application: which path answers what."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from glm3sdk.errors import ServiceClosedError, UserError
from glm3sdk.server.admission import Admission
from glm3sdk.server.chat_completions import ChatCompletions
from glm3sdk.server.completions import Completions
from glm3sdk.server.endpoint import Server
from glm3sdk.server.failures import no_such_page
from glm3sdk.server.gate import Gate
from glm3sdk.server.metrics import CONTENT_TYPE, Metrics
from glm3sdk.server.openapi import description
from glm3sdk.services.chat import Glm3Service

STATIC = Path(__file__).with_name("static")

DEFAULT_MAX_QUEUE = 64
DEFAULT_MAX_BODY_BYTES = 4 * 2**20
DEFAULT_REQUEST_TIMEOUT_S = 600.0


def create_app(
    service: Glm3Service,
    *,
    model_name: str,
    api_key: str | None = None,
    max_queue: int = DEFAULT_MAX_QUEUE,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
    cors_origins: Collection[str] = (),
    allowed_hosts: Collection[str] | None = None,
    static: Path | None = STATIC,
) -> Starlette:
    """Make an ASGI application that serves a model in OpenAI's API. It can be mounted.

    Args:
        service: the loaded model; the application does not close it.
        model_name: the name under which clients ask for it.
        api_key: what clients must bring as `Authorization: Bearer`; None asks for nothing.
        max_queue: replies that may wait beside those that run; further ones are refused
            with 429.
        max_body_bytes: the largest request body.
        request_timeout_s: the longest time that a request may take, from its first byte to
            the answer's last.
        cors_origins: origins whose pages may call this server, such as
            "https://app.example"; by default none but its own.
        allowed_hosts: names in a request's `Host` that are answered; None answers all.
        static: the folder with the page's `index.html`, or None.

    Raises:
        UserError: an empty API key, or a limit below its least value.
    """
    if api_key is not None and not api_key.strip():
        raise UserError("the API key is empty; give one of at least one character, or None")
    if max_queue < 0 or max_body_bytes < 1 or not request_timeout_s > 0:
        raise UserError(
            f"max_queue={max_queue} must be at least 0, max_body_bytes={max_body_bytes} at "
            f"least 1, and request_timeout_s={request_timeout_s} above 0"
        )
    server = Server(
        service=service,
        model_name=model_name,
        admission=Admission(slots=service.load.slots, max_queue=max_queue),
        metrics=Metrics(service),
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout_s,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None, None]:
        yield
        server.admission.closed = True

    middleware = [Middleware(Gate, api_key=api_key, allowed_hosts=allowed_hosts)]
    if cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
        middleware.append(cors)
    app = Starlette(
        routes=_routes(server, static),
        middleware=middleware,
        exception_handlers={HTTPException: no_such_page},
        lifespan=lifespan,
    )
    app.state.admission = server.admission
    return app


def _routes(server: Server, static: Path | None) -> list[BaseRoute]:
    pages = _Pages(server)
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", ChatCompletions(server), methods=["POST"]),
        Route("/v1/completions", Completions(server), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/healthz", pages.alive),
        Route("/readyz", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/openapi.json", pages.openapi),
    ]
    if static is not None and (static / "index.html").is_file():
        index = static / "index.html"

        async def page(_request: Request) -> Response:
            return FileResponse(index, media_type="text/html")

        routes += [Route("/", page), Mount("/static", StaticFiles(directory=static))]
    return routes


class _Pages:
    """The pages that generate nothing."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started = int(time.time())

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        if name != self._server.model_name:
            raise HTTPException(404, f"no model {name!r:.80} (known: {self._server.model_name})")
        return JSONResponse(self._model())

    async def alive(self, _request: Request) -> Response:
        """GET /healthz: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """GET /readyz: it takes requests."""
        try:
            self._server.service.check_open()
        except ServiceClosedError:
            return JSONResponse({"status": "closed"}, status_code=503)
        if self._server.admission.closed:
            return JSONResponse({"status": "stopping"}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return Response(self._server.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, _request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(description())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._server.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "glm3sdk",
        }
