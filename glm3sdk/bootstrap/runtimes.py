"""From the name of a runtime to an opened model loaded into it."""

from __future__ import annotations

import sys
from functools import partial

from glm3sdk.adapters.mindspore.profiles import PROFILES, DeviceProfile
from glm3sdk.adapters.mindspore.runtime import ALONE, MindSporeRuntime
from glm3sdk.adapters.openvino.runtime import NAME as OPENVINO
from glm3sdk.adapters.openvino.runtime import OpenVinoRuntime
from glm3sdk.bootstrap.models import OpenedModel
from glm3sdk.domain.parallel import Place
from glm3sdk.errors import UnsupportedOptionError
from glm3sdk.hookspecs import RegisterRuntime, RuntimeFactory, hookimpl
from glm3sdk.plugins import missing, plugin_manager, registered
from glm3sdk.ports.model_runtime import ModelRuntime

DEFAULT_RUNTIME = "mindspore-cpu"


@hookimpl
def glm3_register_runtimes(register: RegisterRuntime) -> None:
    """Register the runtimes that ship with the SDK, as any plugin would."""
    for name, profile in PROFILES.items():
        register(name, partial(MindSporeRuntime, profile=profile))
    register(OPENVINO, OpenVinoRuntime)


def runtime_factory(name: str) -> RuntimeFactory:
    """What loads a model into the runtime of that name.

    Raises:
        UnknownNameError: no runtime goes by that name.
        PluginError: two plugins register one name, or one that may have it cannot be used.
    """
    manager = plugin_manager([sys.modules[__name__]])
    factories: dict[str, RuntimeFactory] = registered(manager, "glm3_register_runtimes", "runtime")
    if name not in factories:
        raise missing(manager, "runtime", name, factories)
    return factories[name]


def check_runtime(opened: OpenedModel, runtime: str | None) -> None:
    """Check that a runtime can hold an opened model; None is the one it was made for.

    Raises:
        UnsupportedOptionError: the model was converted for another one.
    """
    if runtime is not None and opened.runtime not in (None, runtime):
        raise UnsupportedOptionError(
            f"{opened.path} was converted for the runtime {opened.runtime!r} and cannot be loaded "
            f"into {runtime!r}; pass {opened.runtime!r}, or the model it was converted from"
        )


def shared_profile(runtime: str) -> DeviceProfile:
    """The profile of a runtime whose model several ranks can hold together.

    Raises:
        UnsupportedOptionError: it is not one of these.
    """
    if runtime not in PROFILES:
        raise UnsupportedOptionError(
            f"runtime {runtime!r} holds a model in one process; several ranks share one in "
            f"{', '.join(PROFILES)}"
        )
    return PROFILES[runtime]


def start_runtime(
    opened: OpenedModel,
    *,
    runtime: str | None,
    dtype: str | None,
    device_id: int,
    max_device_memory: str | None,
    place: Place = ALONE,
) -> ModelRuntime:
    """Load an opened model; without the name of a runtime, into the one it was made for.

    Args:
        opened: the model.
        runtime: a runtime's name, or None.
        dtype: what to hold weights in; None lets the runtime choose.
        device_id: which card.
        max_device_memory: most memory to take of it.
        place: this rank's, of a job that was entered.

    Raises:
        UnsupportedOptionError: it was converted for another runtime, or that one cannot share it
            with other ranks.
    """
    chosen = runtime or opened.runtime or DEFAULT_RUNTIME
    check_runtime(opened, chosen)
    if not place.alone:
        return MindSporeRuntime(
            profile=shared_profile(chosen),
            config=opened.config,
            checkpoint=opened.checkpoint,
            dtype=dtype,
            device_id=device_id,
            max_device_memory=max_device_memory,
            place=place,
        )
    return runtime_factory(chosen)(
        config=opened.config,
        checkpoint=opened.checkpoint,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )
