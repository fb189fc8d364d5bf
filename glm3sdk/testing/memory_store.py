"""A checkpoint store in memory, for tests that save and resume."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import attrs
import numpy as np

from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import (
    check_file_name,
    check_specs,
    checked_values,
    converted,
    index_ranges,
)


class MemoryCheckpointStore:
    """A `CheckpointStore` whose checkpoints live as long as it does.

    A URI is any text; "runs/a" lies directly below "runs".
    """

    def __init__(self) -> None:
        self._published: dict[str, MemoryCheckpoint] = {}

    def open(self, uri: str) -> MemoryCheckpoint:
        """Open a published checkpoint.

        Raises:
            InvalidCheckpointError: there is none.
        """
        checkpoint = self._published.get(_key(uri))
        if checkpoint is None:
            raise InvalidCheckpointError(f"no checkpoint at {uri!r}; pass another URI")
        return checkpoint

    def create(self, uri: str) -> MemoryCheckpointWriter:
        """Begin to write a checkpoint."""
        return MemoryCheckpointWriter(self._published, _key(uri))

    def list(self, uri: str) -> tuple[str, ...]:
        """URIs of the published checkpoints directly below `uri`, sorted by name."""
        parent = _key(uri) + "/"
        return tuple(
            sorted(
                key
                for key in self._published
                if key.startswith(parent) and "/" not in key[len(parent) :]
            )
        )

    def delete(self, uri: str) -> None:
        """Remove a published checkpoint.

        Raises:
            InvalidCheckpointError: there is none.
        """
        self.open(uri)
        del self._published[_key(uri)]


@attrs.frozen(eq=False)
class MemoryCheckpoint:
    """A `StoredCheckpoint` in memory."""

    _arrays: Mapping[str, HostArray]
    _contents: Mapping[str, bytes]
    _files: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files, sorted."""
        return self._files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        specs = {name: TensorSpec(a.shape, a.dtype.name) for name, a in self._arrays.items()}
        return MappingProxyType(specs)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """A copy of a tensor, or of a slice of it.

        Raises:
            InvalidCheckpointError: no such tensor, or an index that does not fit it.
        """
        if name not in self._arrays:
            raise InvalidCheckpointError(f"no tensor {name!r} in this checkpoint")
        array = self._arrays[name]
        ranges = index_ranges(name, array.shape, index)
        return array[tuple(slice(start, stop) for start, stop in ranges)].copy()

    def read_file(self, name: str) -> bytes:
        """A small file's bytes.

        Raises:
            InvalidCheckpointError: no such file.
        """
        if name not in self._contents:
            raise InvalidCheckpointError(
                f"no small file {name!r} (there is {', '.join(self._contents) or 'none'})"
            )
        return self._contents[name]

    def verify(self) -> None:
        """Do nothing: memory does not rot."""


class MemoryCheckpointWriter:
    """A `CheckpointWriter` in memory. Any error ends it."""

    def __init__(self, published: dict[str, MemoryCheckpoint], key: str) -> None:
        self._published, self._key = published, key
        self._arrays: dict[str, HostArray] = {}
        self._contents: dict[str, bytes] = {}
        self._placed: dict[str, str] = {}
        self._files: builtins.list[str] = []
        self._open = True

    def add_tensors(
        self,
        file: str,
        specs: Mapping[str, TensorSpec],
        values: Iterable[tuple[str, HostArray]],
    ) -> None:
        """Keep a copy of tensors.

        Raises:
            InvalidCheckpointError: values do not fit specs, or the name is not free.
            CheckpointWriteError: the writer has ended.
        """
        with self._ending_on_error():
            check_file_name(file, tensors=True, taken=self._files)
            check_specs(file, specs, self._placed)
            for name, value in checked_values(file, specs, values):
                stored = np.array(converted(file, name, value, specs[name].dtype), order="C")
                self._arrays[name] = stored
            self._placed.update(dict.fromkeys(specs, file))
            self._files.append(file)

    def add_file(self, file: str, data: bytes) -> None:
        """Keep a small file.

        Raises:
            InvalidCheckpointError: the name is not a plain one, or not free.
            CheckpointWriteError: the writer has ended.
        """
        with self._ending_on_error():
            check_file_name(file, tensors=False, taken=self._files)
            self._contents[file] = bytes(data)
            self._files.append(file)

    def commit(self) -> None:
        """Publish.

        Raises:
            CheckpointWriteError: the writer has ended.
        """
        with self._ending_on_error():
            files = tuple(sorted(self._files))
            self._published[self._key] = MemoryCheckpoint(self._arrays, self._contents, files)
        self._open = False

    def abort(self) -> None:
        """Forget what was added. After `commit` this does nothing."""
        self._open = False

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        if not self._open:
            raise CheckpointWriteError(
                f"the writer of {self._key} has ended; create another one for another try"
            )
        try:
            yield
        except BaseException:
            self._open = False
            raise


def _key(uri: str) -> str:
    return uri.rstrip("/")
