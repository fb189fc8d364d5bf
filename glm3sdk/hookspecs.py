"""The hooks that a plugin may implement (pluggy, entry-point group "glm3sdk").

from glm3sdk.hookspecs import hookimpl

@hookimpl
def glm3_register_runtimes(register):
    register("my-runtime", load_my_runtime)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:  # a plugin of one kind should not import what all kinds need
    import click

    from glm3sdk.domain.model import Glm3Config
    from glm3sdk.domain.tool_functions import Tool
    from glm3sdk.ports.blob_store import BlobStore
    from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore
    from glm3sdk.ports.cluster_topology import ClusterTopology
    from glm3sdk.ports.metric_sink import MetricSink
    from glm3sdk.ports.model_runtime import ModelRuntime
    from glm3sdk.ports.tokenizer import Tokenizer

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


class TokenizerFactory(Protocol):
    """Opens the tokenizer of a model."""

    def __call__(self, path: Path) -> Tokenizer:
        """Return the tokenizer.

        Args:
            path: the model's directory, or the tokenizer's own file.
        """


class RegisterTokenizer(Protocol):
    """Adds a tokenizer under a name."""

    def __call__(self, name: str, factory: TokenizerFactory) -> None:
        """Register `factory` as `name`; a name that is taken is an error."""


class TopologyFactory(Protocol):
    """Makes the topology of this process."""

    def __call__(self, *, environ: Mapping[str, str]) -> ClusterTopology:
        """Return the topology, not yet initialized.

        Args:
            environ: such as `os.environ`.
        """


class RegisterTopology(Protocol):
    """Adds a topology under a name."""

    def __call__(self, name: str, factory: TopologyFactory) -> None:
        """Register `factory` as `name`; a name that is taken is an error."""


class MetricSinkFactory(Protocol):
    """Opens a sink for one run."""

    def __call__(self, *, folder: Path, uri: str, first_step: int) -> MetricSink:
        """Return the open sink.

        Args:
            folder: a local directory of the run.
            uri: where the run's result goes; the directory again, or such as "obs://bucket/run".
            first_step: what an earlier process of the run recorded from this step on counts no
                more.
        """


class RegisterMetricSink(Protocol):
    """Adds a metric sink under a name."""

    def __call__(self, name: str, factory: MetricSinkFactory) -> None:
        """Register `factory` as `name`; a name that is taken is an error."""


class RegisterTool(Protocol):
    """Adds a tool under a name."""

    def __call__(self, name: str, factory: Callable[[], Tool | Callable[..., Any]]) -> None:
        """Register what makes a `Tool`, or a function to describe; a taken name is an error."""


class RegisterCommand(Protocol):
    """Adds a command under a name."""

    def __call__(self, name: str, factory: Callable[[], click.Command]) -> None:
        """Register what makes the command `glm3 NAME`; a name that is taken is an error."""


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

    @hookspec
    def glm3_register_tokenizers(self, register: RegisterTokenizer) -> None:
        """Call `register(name, factory)` for each tokenizer that the plugin brings.

        `load_tokenizer` and `load_service` take the name as `tokenizer=`.
        """

    @hookspec
    def glm3_register_topologies(self, register: RegisterTopology) -> None:
        """Call `register(name, factory)` for each way of ranks to meet that the plugin brings."""

    @hookspec
    def glm3_register_metric_sinks(self, register: RegisterMetricSink) -> None:
        """Call `register(name, factory)` for each place where a finetune's figures may go.

        A run names its sinks in `metrics.sinks`.
        """

    @hookspec
    def glm3_register_tools(self, register: RegisterTool) -> None:
        """Call `register(name, factory)` for each tool that the plugin brings.

        `load_tools` and `glm3 chat --tool` take the name; nothing is called before.
        """

    @hookspec
    def glm3_register_commands(self, register: RegisterCommand) -> None:
        """Call `register(name, factory)` for each command that the plugin adds to `glm3`.

        `factory()` gives a click command; it is called when the command is used.
        """
