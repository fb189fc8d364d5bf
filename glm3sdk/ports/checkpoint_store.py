"""The port of checkpoints: named tensors read by slice, and files published as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from glm3sdk.ports.arrays import HostArray


@attrs.frozen
class TensorSpec:
    """Shape and dtype ("float16", "bfloat16", "float32", ...) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


class CheckpointReader(Protocol):
    """An open checkpoint. Contract: `glm3sdk.testing.CheckpointReaderContract`."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype, known without reading data."""

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it.

        No other tensor's bytes are read, and of a slice of the first dimension (some rows) no
        other bytes of this one. Between the rows of a slice of later dimensions (some columns)
        the store may read along what would take longer to leave out; never more than the tensor.

        Raises:
            InvalidCheckpointError: no such tensor, or its bytes cannot be read.
        """


class StoredCheckpoint(CheckpointReader, Protocol):
    """A published checkpoint: the tensors of all its files, and its other files."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the manifest lists."""

    def read_file(self, name: str) -> bytes:
        """A small file's bytes, checked against the manifest.

        Raises:
            InvalidCheckpointError: no such file, or not what was written.
        """

    def verify(self) -> None:
        """Read every file and compare it with the manifest's sha256.

        Raises:
            InvalidCheckpointError: the message names the first file that differs.
        """


class CheckpointWriter(Protocol):
    """A checkpoint that is being written; nobody sees it before `commit`."""

    def add_tensors(
        self,
        file: str,
        specs: Mapping[str, TensorSpec],
        values: Iterable[tuple[str, HostArray]],
    ) -> None:
        """Write a safetensors file, a tensor at a time.

        Args:
            file: a plain file name, such as "model.safetensors".
            specs: every tensor's shape and dtype, in any order.
            values: the tensors, each once, in any order, converted to the spec's dtype.

        Raises:
            InvalidCheckpointError: values do not fit specs; CheckpointWriteError: no room.
        """

    def add_file(self, file: str, data: bytes) -> None:
        """Write a small file, such as config.json."""

    def commit(self) -> None:
        """Publish: everything is on disk, then the manifest, then the name. All or nothing."""

    def abort(self) -> None:
        """Remove what was written. After `commit` this does nothing."""


class CheckpointStore(Protocol):
    """Where checkpoints live. Contract: `glm3sdk.testing.CheckpointStoreContract`."""

    def open(self, uri: str) -> StoredCheckpoint:
        """Open a published checkpoint.

        Raises:
            InvalidCheckpointError: there is none, or its manifest cannot be read.
        """

    def create(self, uri: str) -> CheckpointWriter:
        """Begin to write a checkpoint; one that is published there is replaced by `commit`."""

    def list(self, uri: str) -> tuple[str, ...]:
        """URIs of the published checkpoints directly below `uri`, sorted by name."""

    def delete(self, uri: str) -> None:
        """Remove a published checkpoint; its manifest goes first."""
