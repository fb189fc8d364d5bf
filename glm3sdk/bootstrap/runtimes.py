"""From the name of a runtime to an opened model loaded into it."""

from __future__ import annotations

import sys
from functools import partial

from glm3sdk.adapters.mindspore.profiles import PROFILES
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.bootstrap.models import OpenedModel
from glm3sdk.errors import unknown_name
from glm3sdk.hookspecs import RegisterRuntime, RuntimeFactory, hookimpl
from glm3sdk.plugins import plugin_manager, registered
from glm3sdk.ports.model_runtime import ModelRuntime

DEFAULT_RUNTIME = "mindspore-cpu"


@hookimpl
def glm3_register_runtimes(register: RegisterRuntime) -> None:
    """Register the runtimes that ship with the SDK, as any plugin would."""
    for name, profile in PROFILES.items():
        register(name, partial(MindSporeRuntime, profile=profile))


def runtime_factory(name: str) -> RuntimeFactory:
    """What loads a model into the runtime of that name.

    Raises:
        UnknownNameError: no runtime goes by that name.
        PluginError: an installed plugin cannot be used.
    """
    manager = plugin_manager([sys.modules[__name__]])
    factories: dict[str, RuntimeFactory] = registered(manager, "glm3_register_runtimes", "runtime")
    if name not in factories:
        raise unknown_name("runtime", name, factories)
    return factories[name]


def start_runtime(
    opened: OpenedModel,
    *,
    runtime: str,
    dtype: str | None,
    device_id: int,
    max_device_memory: str | None,
) -> ModelRuntime:
    """Load an opened model."""
    return runtime_factory(runtime)(
        config=opened.config,
        checkpoint=opened.checkpoint,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )
