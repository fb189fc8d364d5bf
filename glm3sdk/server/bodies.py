"""The body of a request: bounded, JSON, and of the right shape."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from glm3sdk.server.exchange import ClientLeft
from glm3sdk.server.failures import ApiError

_Body = TypeVar("_Body", bound=BaseModel)


async def read_body(request: Request, *, most: int) -> bytes:
    """Read the body.

    Args:
        request: nothing of it was read.
        most: bytes to read.

    Raises:
        ApiError: 415 for another type than JSON, 413 for a larger body.
        ClientLeft: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A form of another site's page can send every type that it may without being asked.
        raise ApiError(
            415, "send the body as JSON, with 'Content-Type: application/json'", code="not_json"
        )
    declared = request.headers.get("content-length", "0")
    too_large = ApiError(
        413,
        f"the body is larger than {most} bytes; shorten the conversation",
        code="body_too_large",
        headers={"Connection": "close"},
    )
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect as exc:
        raise ClientLeft from exc
    return bytes(body)


def parse_body(kind: type[_Body], body: bytes) -> _Body:
    """Read a body as one of the request models.

    Raises:
        ApiError: 400; it names the parameter.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body is not JSON: {message}", code="invalid_json") from exc
        where = f"{param}: " if param else ""
        top = str(first["loc"][0]) if first["loc"] else None
        raise ApiError(400, f"{where}{message}", param=top, code="invalid_value") from exc
