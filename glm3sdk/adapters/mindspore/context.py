"""Import and set up MindSpore for one device; everything here runs on the executor."""

from __future__ import annotations

import importlib.util
import os

from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.errors import BackendUnavailableError

_INSTALL = "pip install 'glm3sdk[mindspore]'"


def require_mindspore() -> None:
    """Check that MindSpore is installed, without the second that importing it takes.

    Raises:
        BackendUnavailableError: it is not; the message says what to install.
    """
    if importlib.util.find_spec("mindspore") is None:
        raise BackendUnavailableError(f"MindSpore is not installed; install it with {_INSTALL}")


def set_up(
    profile: DeviceProfile, *, device_id: int = 0, max_device_memory: str | None = None
) -> None:
    """Choose graph mode and the device.

    Raises:
        BackendUnavailableError: this MindSpore has no such device, or cannot be imported.
    """
    require_mindspore()
    # MindSpore's C++ side logs warnings of its own doing; a user can still ask for them.
    os.environ.setdefault("GLOG_v", "3")
    try:
        import mindspore as ms

        ms.set_context(mode=ms.GRAPH_MODE)
        if profile.device_target != "CPU":
            ms.set_device(profile.device_target, device_id)
            if max_device_memory is not None:
                ms.runtime.set_memory(max_size=max_device_memory)
        else:
            ms.set_device("CPU")
        ms.set_context(jit_config={"jit_level": "O0"})
    except (ImportError, SystemError) as exc:
        raise BackendUnavailableError(
            f"MindSpore cannot be imported ({exc}); it needs numpy below 2: {_INSTALL}"
        ) from exc
    except (RuntimeError, ValueError) as exc:
        raise BackendUnavailableError(_unavailable(profile, exc)) from exc


def _unavailable(profile: DeviceProfile, exc: Exception) -> str:
    reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    if profile.device_target == "Ascend":
        remedy = (
            "runtime 'mindspore-ascend' needs an Ascend card with its driver and CANN, and "
            "MindSpore's Ascend package; check with `python -c 'import mindspore; "
            'mindspore.set_device("Ascend"); mindspore.run_check()\'`, '
            "or use runtime='mindspore-cpu'"
        )
    else:
        remedy = f"reinstall it with {_INSTALL}"
    return f"MindSpore has no {profile.device_target} device here ({reason}); {remedy}"
