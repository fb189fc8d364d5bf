"""The hooks that a plugin may implement (pluggy, entry-point group "glm3sdk").

from glm3sdk.hookspecs import hookimpl

@hookimpl
def glm3_register_runtimes(register):
    register("my-runtime", load_my_runtime)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pluggy

from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore
from glm3sdk.ports.model_runtime import ModelRuntime

PROJECT = "glm3sdk"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RuntimeFactory(Protocol):
    """Loads a model into a runtime."""

    def __call__(
        self,
        *,
        config: Glm3Config,
        checkpoint: CheckpointReader,
        dtype: str | None,
        device_id: int,
        max_device_memory: str | None,
    ) -> ModelRuntime:
        """Return the loaded runtime.

        Args:
            config: the model's hyper-parameters.
            checkpoint: its weights, checked against the config.
            dtype: what to hold them in; None lets the runtime choose.
            device_id: which card, for runtimes that have cards.
            max_device_memory: most memory to take of it, such as "59GB".
        """


class RegisterRuntime(Protocol):
    """Adds a runtime under a name."""

    def __call__(self, name: str, factory: RuntimeFactory) -> None:
        """Register `factory` as `name`; a name that is taken is an error."""


class RegisterBlobStore(Protocol):
    """Adds a blob store under the scheme of its URIs."""

    def __call__(self, scheme: str, factory: Callable[[], BlobStore]) -> None:
        """Register `factory` for "SCHEME://..."; a scheme that is taken is an error."""


class RegisterCheckpointStore(Protocol):
    """Adds a checkpoint store under the scheme of its URIs."""

    def __call__(self, scheme: str, factory: Callable[[], CheckpointStore]) -> None:
        """Register `factory` for "SCHEME://..."; a scheme that is taken is an error."""


class Hooks:
    """Every hook; a plugin implements the ones it needs, as functions without self."""

    @hookspec
    def glm3_register_runtimes(self, register: RegisterRuntime) -> None:
        """Call `register(name, factory)` for each runtime that the plugin brings."""

    @hookspec
    def glm3_register_blob_stores(self, register: RegisterBlobStore) -> None:
        """Call `register(scheme, factory)` for each kind of storage that the plugin brings.

        Models, checkpoints and finetune runs under "SCHEME://..." then work like those under
        "obs://...". `factory()` is called for each use; it opens no connection.
        """

    @hookspec
    def glm3_register_checkpoint_stores(self, register: RegisterCheckpointStore) -> None:
        """Call `register(scheme, factory)` for checkpoints that are not files on a blob store.

        It goes before the blob store of the same scheme, for checkpoints alone.
        """
