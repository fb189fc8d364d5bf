"""Checkpoints on a local disk: a directory each, published by a rename."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.adapters.storage.local_checkpoint import LocalCheckpoint, identity, reading
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, encode_manifest
from glm3sdk.adapters.storage.safetensors_file import write_safetensors
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import check_file_name, check_specs

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOOKS = 5


class LocalCheckpointStore:
    """A `CheckpointStore` for paths and `file://` URIs.

    A checkpoint is a directory of files and a manifest.json. It is replaced as a whole,
    with whatever else was put into it. Names that begin with a dot are the store's own.
    """

    def open(self, uri: str) -> LocalCheckpoint:
        """Open a published checkpoint: its manifest, the sizes and the headers are read.

        Raises:
            InvalidCheckpointError: there is none, or it is damaged.
        """
        path = _path(uri)
        with reading(path):
            for _ in range(_LOOKS):
                place = whole_directory.find(path)
                if place is None:
                    break
                before = identity(place)
                try:
                    return LocalCheckpoint(place)
                except (InvalidCheckpointError, OSError):
                    if before is not None and identity(place) == before:
                        raise
            raise InvalidCheckpointError(
                f"no checkpoint at {path} (a directory with {MANIFEST_FILE}); pass another path"
            )

    def create(self, uri: str) -> LocalCheckpointWriter:
        """Begin to write a checkpoint; what killed processes left beside it is removed.

        Raises:
            InvalidCheckpointError: something that is not a checkpoint is there.
            CheckpointWriteError: nothing can be written there.
        """
        return LocalCheckpointWriter(_path(uri))

    def list(self, uri: str) -> tuple[str, ...]:
        """URIs of the published checkpoints directly below `uri`, sorted by name."""
        path = _path(uri, of_checkpoint=False)
        with reading(path):
            try:
                names = sorted(whole_directory.published_names(path))
            except FileNotFoundError:
                return ()
        is_uri = _SCHEME.match(uri) is not None
        start = uri.rstrip("/")
        return tuple(f"{start}/{quote(name) if is_uri else name}" for name in names)

    def delete(self, uri: str) -> None:
        """Remove a published checkpoint; from the first step on it is not seen any more.

        Raises:
            InvalidCheckpointError: there is none.
            CheckpointWriteError: it cannot be removed.
        """
        path = _path(uri)
        with writing(path):
            if whole_directory.find(path) is None:
                raise InvalidCheckpointError(f"no checkpoint at {path}; nothing was removed")
            whole_directory.unpublish(path)


class LocalCheckpointWriter:
    """A `CheckpointWriter` of a directory. Any error ends it and removes what was written.

    Raises:
        InvalidCheckpointError: something that is not a checkpoint is at `path`.
        CheckpointWriteError: nothing can be written there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, FileEntry] = {}
        self._placed: dict[str, str] = {}
        self._open = True
        with writing(path), ExitStack() as stack:
            whole_directory.refuse_foreign(path)
            self._directory = stack.enter_context(whole_directory.temporary(path))
            self._stack = stack.pop_all()

    def add_tensors(
        self,
        file: str,
        specs: Mapping[str, TensorSpec],
        values: Iterable[tuple[str, HostArray]],
    ) -> None:
        """Write a safetensors file, a tensor at a time.

        Raises:
            InvalidCheckpointError: values do not fit specs, or the name is not free.
            CheckpointWriteError: no room, no permission, or the writer has ended.
        """
        with self._ending_on_error():
            check_file_name(file, tensors=True, taken=(*self._entries, MANIFEST_FILE))
            check_specs(file, specs, self._placed)
            self._entries[file] = write_safetensors(self._directory / file, specs, values)
            self._placed.update(dict.fromkeys(specs, file))

    def add_file(self, file: str, data: bytes) -> None:
        """Write a small file.

        Raises:
            InvalidCheckpointError: the name is not a plain one, or not free.
            CheckpointWriteError: no room, no permission, or the writer has ended.
        """
        with self._ending_on_error():
            check_file_name(file, tensors=False, taken=(*self._entries, MANIFEST_FILE))
            self._write(file, data)
            self._entries[file] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def commit(self) -> None:
        """Publish: everything is on disk, then the manifest, then the name.

        Raises:
            InvalidCheckpointError: something that is not a checkpoint came there.
            CheckpointWriteError: it could not be published, or the writer has ended.
        """
        with self._ending_on_error():
            self._write(MANIFEST_FILE, encode_manifest(self._entries))
            with writing(self._path):
                whole_directory.publish(self._directory, self._path)
        self.abort()

    def abort(self) -> None:
        """Remove what was written. After `commit` this does nothing."""
        self._open = False
        self._stack.close()

    def _write(self, name: str, data: bytes) -> None:
        path = self._directory / name
        with writing(path), path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        if not self._open:
            raise CheckpointWriteError(
                f"the writer of {self._path} has ended; create another one for another try"
            )
        try:
            yield
        except BaseException:
            self.abort()
            raise


def _path(uri: str, *, of_checkpoint: bool = True) -> Path:
    path = uri
    if _SCHEME.match(uri):
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise InvalidCheckpointError(f"{uri!r} is not local; pass a path or file:///PATH")
        path = unquote(parts.path)
    if not path or "\0" in path:
        raise InvalidCheckpointError(f"{uri!r} is not a path; pass one")
    absolute = Path(os.path.abspath(path))
    if of_checkpoint and (not absolute.name or absolute.name.startswith(".")):
        raise InvalidCheckpointError(
            f"{uri!r} cannot be a checkpoint; pass a path whose last name does not begin with a dot"
        )
    return absolute
