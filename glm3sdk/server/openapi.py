"""The server's description as an OpenAPI document."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from glm3sdk._version import __version__
from glm3sdk.server.schemas import ChatRequest, CompletionRequest

_PAGES = {
    "/v1/models": "The models that are served: one.",
    "/healthz": "The process answers.",
    "/readyz": "It takes requests; 503 while it stops.",
    "/metrics": "Counters in Prometheus's text format.",
}


@cache
def description() -> dict[str, Any]:
    """The document; the answers are those of OpenAI's API."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {
        path: {"get": {"summary": text, "responses": {"200": {"description": text}}}}
        for path, text in _PAGES.items()
    }
    paths["/readyz"]["get"]["responses"]["503"] = {"description": "It stops, or is closed."}
    for path, model in (
        ("/v1/chat/completions", ChatRequest),
        ("/v1/completions", CompletionRequest),
    ):
        paths[path] = {"post": _operation(model, schemas)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "glm3sdk", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[model.__name__] = schema
    body = {"$ref": f"#/components/schemas/{model.__name__}"}
    statuses = {
        "200": "The answer, or a stream of server-sent events.",
        "400": "A parameter is wrong or not supported; the answer names it.",
        "401": "The API key is missing or wrong.",
        "404": "No such model.",
        "413": "The body is too large.",
        "415": "The body is not JSON.",
        "429": "The queue is full; Retry-After says when to come back.",
        "503": "The server is stopping.",
        "504": "The reply took too long.",
    }
    return {
        "summary": (model.__doc__ or "").strip(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {status: {"description": text} for status, text in statuses.items()},
    }
