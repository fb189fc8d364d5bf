"""The OpenAI-compatible HTTP server, for `glm3 serve` and for applications that mount it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glm3sdk.errors import BackendUnavailableError

if TYPE_CHECKING:
    from glm3sdk.server.app import create_app
    from glm3sdk.server.listening import Listener

__all__ = ["Listener", "create_app"]

_HOMES = {"Listener": "glm3sdk.server.listening", "create_app": "glm3sdk.server.app"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glm3sdk.server' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as exc:
        library = (exc.name or "").partition(".")[0]
        raise BackendUnavailableError(
            f"the server needs {library}, which is not installed: pip install 'glm3sdk[serve]'"
        ) from exc
