"""The OpenAI-compatible HTTP server, for `glm3 serve` and for applications that mount it."""

from __future__ import annotations

from importlib.util import find_spec

from glm3sdk.errors import BackendUnavailableError

for _library in ("prometheus_client", "pydantic", "starlette", "uvicorn"):
    if find_spec(_library) is None:
        raise BackendUnavailableError(
            f"the server needs {_library}, which is not installed: pip install 'glm3sdk[serve]'"
        )

from glm3sdk.server.app import create_app
from glm3sdk.server.listening import Listener

__all__ = ["Listener", "create_app"]
