"""Checkpoints on a local disk: a directory each, published by a rename."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.adapters.storage.local_checkpoint import LocalCheckpoint, identity, reading
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, encode_manifest
from glm3sdk.adapters.storage.staged_writer import StagedWriter, write_through
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import InvalidCheckpointError

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
        path = local_path(uri, of_checkpoint=True)
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

    def create(self, uri: str) -> StagedWriter:
        """Begin to write a checkpoint; what killed processes left beside it is removed.

        Raises:
            InvalidCheckpointError: something that is not a checkpoint is there.
            CheckpointWriteError: nothing can be written there.
        """
        path = local_path(uri, of_checkpoint=True)
        with writing(path):
            whole_directory.refuse_foreign(path)

        def publish(directory: Path, files: Mapping[str, FileEntry]) -> None:
            write_through(directory / MANIFEST_FILE, encode_manifest(files))
            with writing(path):
                whole_directory.publish(directory, path)

        return StagedWriter(path, name=str(path), publish=publish)

    def list(self, uri: str) -> tuple[str, ...]:
        """URIs of the published checkpoints directly below `uri`, sorted by name."""
        path = local_path(uri)
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
        path = local_path(uri, of_checkpoint=True)
        with writing(path):
            if whole_directory.find(path) is None:
                raise InvalidCheckpointError(f"no checkpoint at {path}; nothing was removed")
            whole_directory.unpublish(path)


def local_path(uri: str, *, of_checkpoint: bool = False) -> Path:
    """The absolute path that a path or a `file://` URI means.

    Args:
        uri: the path or URI.
        of_checkpoint: whether a checkpoint is to be there, whose name is not hidden.

    Raises:
        InvalidCheckpointError: it is not local, or names nothing.
    """
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
