"""OpenVINO's exceptions, translated where they leave this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glm3sdk.errors import BackendUnavailableError, RuntimeFailureError

_EXTRA = "pip install 'glm3sdk[openvino]'"
_CPU_INFO = "/proc/cpuinfo"


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


def read_cpu_info() -> str:
    """What Linux says of the processors; "" where it says nothing."""
    try:
        with open(_CPU_INFO, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def require_avx2(cpu_info: str) -> None:
    """Check that the processor has the instructions that the kernels are written in.

    Args:
        cpu_info: as `read_cpu_info` gives it.

    Raises:
        BackendUnavailableError: it lacks AVX2.
    """
    lines = (line.partition(":") for line in cpu_info.splitlines())
    flags = next((value.split() for key, _, value in lines if key.strip() == "flags"), None)
    if flags is not None and "avx2" not in flags:
        raise BackendUnavailableError(
            "the runtime 'openvino' needs a processor with AVX2, which this one lacks (see flags "
            f"in {_CPU_INFO}); use the runtime 'mindspore-cpu'"
        )
