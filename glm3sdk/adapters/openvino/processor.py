"""What the machine's processor can do, as far as the kernels differ by it."""

from __future__ import annotations

from glm3sdk.errors import BackendUnavailableError

_CPU_INFO = "/proc/cpuinfo"
_VNNI = {"avx512_vnni", "avx_vnni"}


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
    flags = _flags(cpu_info)
    if flags is not None and "avx2" not in flags:
        raise BackendUnavailableError(
            "the runtime 'openvino' needs a processor with AVX2, which this one lacks (see flags "
            f"in {_CPU_INFO}); use the runtime 'mindspore-cpu'"
        )


def multiplies_bytes(cpu_info: str) -> bool:
    """Whether the kernels quantise activations and multiply 8-bit values, which takes VNNI.

    Without it they unpack weights to float32 in every step. Where Linux says nothing, they are
    taken to.
    """
    flags = _flags(cpu_info)
    return flags is None or not _VNNI.isdisjoint(flags)


def _flags(cpu_info: str) -> list[str] | None:
    lines = (line.partition(":") for line in cpu_info.splitlines())
    return next((value.split() for key, _, value in lines if key.strip() == "flags"), None)
