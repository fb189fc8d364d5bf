"""The offline switch: nothing is asked of the network while it is on."""

from __future__ import annotations

import os

from glm3sdk.errors import OfflineError

OFFLINE_VARIABLES = ("GLM3SDK_OFFLINE", "HF_HUB_OFFLINE")


def offline() -> bool:
    """Whether an environment variable forbids network calls (1, true, yes or on)."""
    return _switch() is not None


def require_online(uri: str) -> None:
    """Refuse to fetch what the offline switch forbids.

    Raises:
        OfflineError: it is on; the message names the variable.
    """
    if name := _switch():
        raise OfflineError(
            f"{uri} needs the network and {name}={os.environ[name]} forbids its use; unset "
            "it, or pass the path of a directory"
        )


def _switch() -> str | None:
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            return name
    return None
