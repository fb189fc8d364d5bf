"""A published checkpoint on a local disk."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, digest_file, read_manifest
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import TENSOR_SUFFIX


class LocalCheckpoint:
    """A `StoredCheckpoint` in a directory. No file handle stays open between reads.

    Raises:
        InvalidCheckpointError: the manifest or a file is not what was written.
        OSError: the directory cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = identity(path)
        manifest = read_manifest(path)
        self._entries = manifest.files
        self._folder = path / manifest.directory  # of a copy from a blob store
        self._tensors = TensorFiles(path)
        for name in sorted(self._entries):
            file = self._member(name)
            if name.endswith(TENSOR_SUFFIX):
                self._tensors.add(file, read_specs(file))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the manifest lists, sorted."""
        return tuple(sorted(self._entries))

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return self._tensors.tensors

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it, in its stored dtype.

        Raises:
            InvalidCheckpointError: no such tensor, a file that was damaged since the
                checkpoint was opened, or the checkpoint was replaced.
        """
        with self._unchanged():
            return self._tensors.read(name, index)

    def read_file(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest.

        Raises:
            InvalidCheckpointError: no such file, or not what was written.
        """
        if name not in self._entries:
            raise InvalidCheckpointError(
                f"{self.path} has no file {name!r} (it has {', '.join(self.files) or 'none'})"
            )
        with self._unchanged():
            file = self._member(name)
            self._check_digest(file, digest_file(file))
            return file.read_bytes()

    def verify(self) -> None:
        """Read every file and compare it with the manifest's sha256.

        Raises:
            InvalidCheckpointError: the message names the first file that differs.
        """
        for name in self.files:
            with self._unchanged():
                file = self._member(name)
                self._check_digest(file, digest_file(file))

    def _member(self, name: str) -> Path:
        """A file of the manifest, which has its size and is not a link."""
        file, size = self._folder / name, self._entries[name].size
        try:
            status = file.lstat()
        except FileNotFoundError as exc:
            raise InvalidCheckpointError(
                f"{file} is missing; use another checkpoint or write it again"
            ) from exc
        if not stat.S_ISREG(status.st_mode):
            raise InvalidCheckpointError(f"{file} is not a plain file; put a copy there")
        if status.st_size != size:
            raise InvalidCheckpointError(
                f"{file} has {status.st_size} bytes and {MANIFEST_FILE} says {size}; "
                "use another checkpoint or write it again"
            )
        return file

    def _check_digest(self, file: Path, found: FileEntry) -> None:
        if found != self._entries[file.name]:
            raise InvalidCheckpointError(
                f"{file} is not what was written: its sha256 is {found.sha256} and "
                f"{MANIFEST_FILE} says {self._entries[file.name].sha256}; use another checkpoint"
            )

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        try:
            with reading(self.path):
                yield
        except InvalidCheckpointError as exc:
            self._check_not_replaced(exc)
            raise
        self._check_not_replaced(None)

    def _check_not_replaced(self, cause: Exception | None) -> None:
        if identity(self.path) != self._opened:
            raise InvalidCheckpointError(
                f"{self.path} was replaced or removed since it was opened; open it again"
            ) from cause


def identity(directory: Path) -> tuple[int, int, int] | None:
    """Tells a checkpoint from the one that replaces it; None where there is none."""
    try:
        status = (directory / MANIFEST_FILE).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an InvalidCheckpointError that names the path."""
    try:
        yield
    except OSError as exc:
        raise InvalidCheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc
