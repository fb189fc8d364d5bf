"""MindSpore's exceptions, translated where they leave the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.errors import RuntimeFailureError

R = TypeVar("R")


def translated(work: Callable[[], R]) -> R:
    """Run `work` on the executor.

    Raises:
        RuntimeFailureError: MindSpore failed; its own exception is the cause.
    """
    try:
        return EXECUTOR.run(work)
    except (RuntimeError, ValueError, TypeError, MemoryError, SystemError) as exc:
        reason = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        raise RuntimeFailureError(f"MindSpore failed: {reason}") from exc
