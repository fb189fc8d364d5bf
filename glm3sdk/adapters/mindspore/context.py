"""Import and set up MindSpore for one device; everything here runs on the executor."""

from __future__ import annotations

import gc
import importlib.util
import os
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.errors import BackendUnavailableError

if TYPE_CHECKING:
    from mindspore import nn

_INSTALL = "pip install 'glm3sdk[mindspore]'"


def require_mindspore() -> None:
    """Check that MindSpore is installed, without the second that importing it takes.

    Raises:
        BackendUnavailableError: it is not, or numpy is too new for it; the message says
            what to install.
    """
    if importlib.util.find_spec("mindspore") is None:
        raise BackendUnavailableError(f"MindSpore is not installed; install it with {_INSTALL}")
    # It can be imported under numpy 2, and fails later in ways that name no cause.
    if int(np.__version__.split(".")[0]) >= 2:
        raise BackendUnavailableError(
            f"MindSpore does not work with numpy {np.__version__}; it needs numpy below 2: "
            f"{_INSTALL}"
        )


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
        from mindspore.communication import GlobalComm

        # MindSpore gives numpy's name "bfloat16" to a type of its own; safetensors needs ours.
        np.sctypeDict["bfloat16"] = ml_dtypes.bfloat16

        EXECUTOR.wait_at_exit()
        ms.set_context(mode=ms.GRAPH_MODE)
        ms.set_context(jit_config={"jit_level": "O0"})
        if GlobalComm.INITED:
            return  # the device was chosen when the job was entered, and stays
        if profile.device_target != "CPU":
            ms.set_device(profile.device_target, device_id)
            if max_device_memory is not None:
                ms.runtime.set_memory(max_size=max_device_memory)
        else:
            ms.set_device("CPU")
    except (ImportError, SystemError) as exc:
        raise BackendUnavailableError(
            f"MindSpore cannot be imported ({exc}); reinstall it with {_INSTALL}"
        ) from exc
    except (RuntimeError, ValueError) as exc:
        raise BackendUnavailableError(_unavailable(profile, exc)) from exc


def free_graphs(cells: Iterable[nn.Cell]) -> None:
    """Free what was compiled of `cells` now: a traceback somewhere may keep the cells."""
    from mindspore.graph.api import _cell_graph_executor

    for cell in cells:
        _cell_graph_executor.del_net_res(cell, cell.compile_cache)
        cell.compile_cache.clear()


def free_unused() -> None:
    """Give back the memory of cells and Parameters that nobody uses any more.

    They stand in reference cycles, and MindSpore holds on to the Parameters of the graph
    that it compiled last.
    """
    from mindspore.graph.api import _cell_graph_executor

    _cell_graph_executor._graph_executor.set_weights_values({})
    # Here and not whenever Python likes: graphs are freed on the thread that made them.
    _collect()


class _Garbage:
    """An object in a reference cycle, for `_collect` to see go."""

    def __init__(self) -> None:
        self.itself = self


def _collect() -> None:
    """Collect everything that is garbage now.

    `gc.collect` returns at once, having done nothing, while another thread collects: and the
    finalizer that sent us here may have been called by just that collection.
    """
    sentinel = weakref.ref(_Garbage())
    gc.collect()
    while sentinel() is not None:
        time.sleep(0.001)
        gc.collect()


def _unavailable(profile: DeviceProfile, exc: Exception) -> str:
    # MindSpore's message goes on for a page; its first sentence says what failed.
    reason = next(iter(str(exc).strip().splitlines()), type(exc).__name__).split(". Please")[0]
    if profile.device_target == "Ascend":
        remedy = (
            "runtime 'mindspore-ascend' needs an Ascend card with its driver and the CANN toolkit, "
            "whose set_env.sh must be sourced first; check with `python -c 'import mindspore; "
            'mindspore.set_device("Ascend"); mindspore.run_check()\'`, '
            "or use runtime='mindspore-cpu'"
        )
    else:
        remedy = f"reinstall it with {_INSTALL}"
    return f"MindSpore has no {profile.device_target} device here ({reason}); {remedy}"
