"""Errors in OpenAI's shape: `{"error": {message, type, param, code}}` and a status."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm3sdk.errors import (
    BackendUnavailableError,
    Glm3Error,
    InvalidConstraintError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
    ServiceClosedError,
    UnknownNameError,
    UnsupportedOptionError,
    UserError,
)

_log = logging.getLogger(__name__)

# The parameter that each mistake is about, and its code; the first class that fits counts.
_MISTAKES: tuple[tuple[type[UserError], str | None, str], ...] = (
    (PromptTooLongError, "messages", "context_length_exceeded"),
    (InvalidMessageError, "messages", "invalid_messages"),
    (InvalidToolError, "tools", "invalid_tools"),
    (InvalidConstraintError, None, "invalid_schema"),
    (UnknownNameError, "tool_choice", "unknown_tool"),
    (BackendUnavailableError, None, "unsupported_parameter"),
    (UnsupportedOptionError, None, "unsupported_parameter"),
    (UserError, None, "invalid_value"),
)


class ApiError(Exception):
    """An answer that says what went wrong.

    Args:
        status: the HTTP status.
        message: what happened and what to do.
        param: the parameter that it is about, if any.
        code: a word for programs.
        headers: further headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else _INVALID)
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


_INVALID = "invalid_request_error"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def as_api_error(error: Exception, *, param: str | None = None) -> ApiError:
    """What a client is told of an error; nothing of one that nobody foresaw.

    Args:
        error: what was raised.
        param: what it is about, where its class does not say so.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(
            504,
            "the reply took longer than this server allows; ask for fewer tokens (max_tokens)",
            code="timeout",
        )
    for kind, usual, code in _MISTAKES:
        if isinstance(error, kind):
            return ApiError(400, str(error), param=usual or param, code=code)
    if isinstance(error, ServiceClosedError):
        return unavailable()
    if isinstance(error, Glm3Error):
        _log.error("a request failed: %s", error)
        return ApiError(500, str(error), code="generation_failed")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def unavailable() -> ApiError:
    """The answer of a server that is about to stop."""
    return ApiError(
        503,
        "the server is stopping; ask again later, or another one",
        code="stopping",
        headers={"Retry-After": "5", "Connection": "close"},
    )


async def no_such_page(_request: Request, error: Exception) -> Response:
    """Answer a wrong path or method in the shape of the others."""
    if not isinstance(error, HTTPException):
        return as_api_error(error).response()
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, error.detail, headers=headers).response()
