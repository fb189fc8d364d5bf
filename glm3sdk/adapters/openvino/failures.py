"""OpenVINO's exceptions, translated where they leave this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glm3sdk.errors import BackendUnavailableError, RuntimeFailureError

_EXTRA = "pip install 'glm3sdk[openvino]'"


@contextmanager
def translated() -> Iterator[None]:
    """Turn what OpenVINO raises in the block into a RuntimeFailureError that chains it."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, MemoryError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        # The first line is the place in its sources; the last one says what happened.
        reason = lines[-1] if lines else type(exc).__name__
        raise RuntimeFailureError(f"OpenVINO failed: {reason}") from exc


def require_openvino() -> None:
    """Check that the library is there.

    Raises:
        BackendUnavailableError: it is not, or cannot be loaded.
    """
    try:
        import openvino  # noqa: F401
    except ImportError as exc:
        raise BackendUnavailableError(
            f"the runtime 'openvino' needs OpenVINO, which cannot be imported ({exc}): {_EXTRA}"
        ) from exc
