"""Checkpoints on any blob store: files under a name made of their digests, then a manifest.

`URI/manifest.json` names the directory that the files are in, `URI/data-0123456789abcdef`.
Why: docs/adr/0011-checkpoints-on-object-storage.md.
"""

from __future__ import annotations

import builtins
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from glm3sdk.adapters.cache_folder import scratch_folder
from glm3sdk.adapters.storage.blob_checkpoint import BlobCheckpoint, check_blob, place_of
from glm3sdk.adapters.storage.manifest import (
    MANIFEST_FILE,
    MAX_BYTES,
    FileEntry,
    Manifest,
    encode_manifest,
    parse_manifest,
)
from glm3sdk.adapters.storage.retried_blobs import RetriedBlobs
from glm3sdk.adapters.storage.staged_writer import StagedWriter
from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    CheckpointWriteError,
    Glm3Error,
    InvalidCheckpointError,
    TransferError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_checks import check_blob_uri
from glm3sdk.ports.blob_store import Blob, BlobStore

_log = logging.getLogger(__name__)
_OWN = re.compile(r"data-[0-9a-f]{16}")
_LOOKS = 5


class BlobCheckpointStore:
    """A `CheckpointStore` on a `BlobStore`.

    Args:
        blobs: where checkpoints go.
        staging: a local folder for what is being written, with room for a checkpoint; made
            where there is none. None: in `scratch_folder()`.
        sleep: waits before a request is tried again, in seconds.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        staging: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._blobs, self._staging = RetriedBlobs(blobs, sleep=sleep), staging

    @property
    def staging(self) -> Path:
        """Where checkpoints are put together; the folder need not be there yet."""
        if self._staging is None:
            self._staging = scratch_folder() / "staging"
        return self._staging

    def open(self, uri: str) -> BlobCheckpoint:
        """Open a published checkpoint: its manifest, its files' sizes and headers are read.

        Raises:
            InvalidCheckpointError: there is none, or it is damaged.
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        uri = uri.rstrip("/")
        for look in range(1, _LOOKS + 1):
            blob = self._manifest_blob(uri)
            if blob is None:
                raise InvalidCheckpointError(
                    f"no checkpoint at {uri} (it has no {MANIFEST_FILE}); pass another URI"
                )
            try:
                return BlobCheckpoint(self._blobs, uri, self._read_manifest(blob))
            except (InvalidCheckpointError, BlobChangedError) as exc:
                # Replaced between two requests: then the next look finds the new one.
                if look == _LOOKS or self._manifest_blob(uri) == blob:
                    raise InvalidCheckpointError(str(exc)) from exc
        raise AssertionError("the last look returns or raises")

    def create(self, uri: str) -> StagedWriter:
        """Begin to write a checkpoint, on the local disk; `commit` sends it.

        Raises:
            BlobAccessError: the URI leads out of its place.
            CheckpointWriteError: nothing can be written there.
        """
        uri = uri.rstrip("/")
        check_blob_uri(f"{uri}/{MANIFEST_FILE}")

        def publish(directory: Path, files: Mapping[str, FileEntry]) -> None:
            with _publishing(uri):
                self._publish(uri, directory, files)

        advice = (
            f"checkpoints for {uri.partition('://')[0]} are put together there first; the "
            "environment variable GLM3SDK_CACHE_DIR chooses another disk"
        )
        # One file name for all: each writer has a directory of its own beside it.
        path = self.staging / "checkpoint"
        return StagedWriter(path, name=uri, publish=publish, advice=advice)

    def list(self, uri: str) -> tuple[str, ...]:
        """URIs of the published checkpoints directly below `uri`, sorted by name.

        Everything below `uri` is listed, at any depth.

        Raises:
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        uri = uri.rstrip("/")
        found = (blob.uri.rsplit("/", 1) for blob in self._below(uri))
        parents = (parent for parent, name in found if name == MANIFEST_FILE)
        return tuple(sorted(each for each in parents if each.count("/") == uri.count("/") + 1))

    def is_free(self, uri: str) -> bool:
        """Whether nothing is below `uri`, except what unfinished writers left there.

        Raises:
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        uri = uri.rstrip("/")
        return all(_is_unfinished(uri, blob) for blob in self._blobs.list(uri))

    def delete(self, uri: str) -> None:
        """Remove a published checkpoint, its manifest first, and what unfinished ones left there.

        Raises:
            InvalidCheckpointError: there is none.
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        uri = uri.rstrip("/")
        blob = self._manifest_blob(uri)
        if blob is None:
            raise InvalidCheckpointError(f"no checkpoint at {uri}; nothing was removed")
        manifest = self._readable_manifest(blob)
        self._blobs.delete(blob.uri)
        if manifest:
            self._remove_files(uri, manifest)
        for each in self._below(uri):
            if _is_unfinished(uri, each):
                self._remove(each.uri)

    def _publish(self, uri: str, directory: Path, files: Mapping[str, FileEntry]) -> None:
        digest = hashlib.sha256(encode_manifest(files)).hexdigest()
        manifest = Manifest(files, f"data-{digest[:16]}")
        place = place_of(uri, manifest)
        before = self._manifest_blob(uri)
        replaced = before and self._readable_manifest(before)
        for name, entry in files.items():
            self._send(directory / name, f"{place}/{name}", entry)
        for name, entry in files.items():
            self._check(f"{place}/{name}", entry)
        content = encode_manifest(files, directory=manifest.directory)
        self._blobs.write(f"{uri}/{MANIFEST_FILE}", content)
        if replaced and replaced.directory != manifest.directory:
            self._remove_files(uri, replaced)

    def _send(self, file: Path, uri: str, entry: FileEntry) -> None:
        """Write a blob, unless an earlier try did: the same URI stands for the same bytes."""
        there = self._blobs.stat(uri)
        if there is None or (there.size, there.sha256) != (entry.size, entry.sha256):
            self._blobs.write(uri, file)

    def _check(self, uri: str, entry: FileEntry) -> None:
        there = self._blobs.stat(uri)
        if there is None:
            raise TransferError(f"{uri} was written and is not there")
        check_blob(there, entry)

    def _manifest_blob(self, uri: str) -> Blob | None:
        return self._blobs.stat(f"{uri}/{MANIFEST_FILE}")

    def _read_manifest(self, blob: Blob) -> Manifest:
        size = min(blob.size, MAX_BYTES + 1)
        return parse_manifest(self._blobs.read(blob, 0, size), blob.uri)

    def _readable_manifest(self, blob: Blob) -> Manifest | None:
        """The manifest of what is about to go; a damaged one must be replaceable too."""
        try:
            return self._read_manifest(blob)
        except (InvalidCheckpointError, BlobChangedError) as exc:
            _log.warning("files that are not known of stay: %s", exc)
            return None

    def _below(self, uri: str) -> builtins.list[Blob]:
        return builtins.list(self._blobs.list(uri))

    def _remove_files(self, uri: str, manifest: Manifest) -> None:
        for name in manifest.files:
            self._remove(f"{place_of(uri, manifest)}/{name}")

    def _remove(self, uri: str) -> None:
        """Remove what no manifest names any more."""
        try:
            self._blobs.delete(uri)
        except Glm3Error as exc:
            # It costs room and no more.
            _log.warning("%s belongs to no checkpoint and stays: %s", uri, exc)


def _is_unfinished(uri: str, blob: Blob) -> bool:
    """Whether a blob lies where a writer puts its files before there is a manifest."""
    directory = blob.uri.split("/")[-2]
    return bool(_OWN.fullmatch(directory)) and blob.uri.count("/") == uri.count("/") + 2


@contextmanager
def _publishing(uri: str) -> Iterator[None]:
    try:
        yield
    except (
        BlobAccessError,
        BlobChangedError,
        BlobUnavailableError,
        InvalidCheckpointError,
        TransferError,
        UnsupportedOptionError,
    ) as exc:
        raise CheckpointWriteError(
            f"{uri} could not be published: {exc}. Write it again: files that arrived whole are "
            "not sent again"
        ) from exc
