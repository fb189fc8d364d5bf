"""A published checkpoint on a blob store, read by ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import attrs

from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, Manifest
from glm3sdk.adapters.storage.safetensors_header import (
    LENGTH_BYTES,
    PlacedTensor,
    header_length,
    parse_header,
)
from glm3sdk.adapters.storage.tensor_ranges import REQUEST_BYTES, fetch_slice
from glm3sdk.errors import BlobChangedError, InvalidCheckpointError, TransferError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.blob_store import Blob, BlobStore
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import DTYPES, TENSOR_SUFFIX, index_ranges

# Most headers fit into it, and then opening a file takes one request.
_HEAD_BYTES = 64 * 1024


@attrs.frozen
class _Tensor:
    """A tensor, and the file that it is in."""

    file: str
    placed: PlacedTensor


class BlobCheckpoint:
    """A `StoredCheckpoint` on a blob store. Files are pinned to the version they were opened at.

    Args:
        blobs: where it is; tries again by itself.
        uri: of the checkpoint.
        manifest: its manifest.

    Raises:
        InvalidCheckpointError: a file is not what the manifest says.
        BlobUnavailableError, BlobAccessError: the store does not answer.
    """

    def __init__(self, blobs: BlobStore, uri: str, manifest: Manifest) -> None:
        self._blobs, self._uri, self._entries = blobs, uri, manifest.files
        self._place = place_of(uri, manifest)
        self._files: dict[str, Blob] = {}
        self._tensors: dict[str, _Tensor] = {}
        with self._translating():
            for name in sorted(self._entries):
                self._files[name] = self._stat(name)
                if name.endswith(TENSOR_SUFFIX):
                    self._list_tensors(name)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the manifest lists, sorted."""
        return tuple(sorted(self._entries))

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType({name: each.placed.spec for name, each in self._tensors.items()})

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it, in its stored dtype.

        Bytes between two rows of a slice are fetched along where they are fewer than
        `tensor_ranges.GAP_BYTES`.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, a dtype that
                is not read, or the checkpoint was replaced.
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        if name not in self._tensors:
            raise InvalidCheckpointError(f"{self._uri}: no tensor {name!r} in this checkpoint")
        file, placed = self._tensors[name].file, self._tensors[name].placed
        if placed.spec.dtype not in DTYPES:
            raise InvalidCheckpointError(
                f"{self._files[file].uri}: tensor {name} is {placed.spec.dtype}; convert it to one "
                f"of {', '.join(DTYPES)}"
            )
        ranges = index_ranges(name, placed.spec.shape, index)

        def fetch(start: int, stop: int) -> bytes:
            return self._fetch(file, placed.start + start, placed.start + stop)

        with self._translating():
            return fetch_slice(placed.spec, ranges, fetch)

    def read_file(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest.

        Raises:
            InvalidCheckpointError: no such file, not what was written, or replaced.
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        if name not in self._entries:
            raise InvalidCheckpointError(
                f"{self._uri} has no file {name!r} (it has {', '.join(self.files) or 'none'})"
            )
        with self._translating():
            data = b"".join(self._chunks(name))
        self._check_digest(name, hashlib.sha256(data).hexdigest())
        return data

    def verify(self) -> None:
        """Read every file and compare it with the manifest's sha256.

        Raises:
            InvalidCheckpointError: the message names the first file that differs.
            BlobUnavailableError, BlobAccessError: the store does not answer.
        """
        for name in self.files:
            digest = hashlib.sha256()
            with self._translating():
                for chunk in self._chunks(name):
                    digest.update(chunk)
            self._check_digest(name, digest.hexdigest())

    def _stat(self, name: str) -> Blob:
        """A file of the manifest, which has its size."""
        uri = f"{self._place}/{name}"
        blob = self._blobs.stat(uri)
        if blob is None:
            raise InvalidCheckpointError(
                f"{uri} is missing; use another checkpoint or write it again"
            )
        check_blob(blob, self._entries[name])
        return blob

    def _list_tensors(self, file: str) -> None:
        blob = self._files[file]
        head = self._fetch(file, 0, min(_HEAD_BYTES, blob.size))
        stop = LENGTH_BYTES + header_length(head, blob.size, blob.uri)
        if stop > len(head):
            rest = range(len(head), stop, REQUEST_BYTES)
            head += b"".join(self._fetch(file, at, min(at + REQUEST_BYTES, stop)) for at in rest)
        for name, placed in parse_header(head[LENGTH_BYTES:stop], blob.size, blob.uri).items():
            if name in self._tensors:
                raise InvalidCheckpointError(
                    f"{self._uri}: tensor {name} is both in {self._tensors[name].file} and in "
                    f"{file}; write it once"
                )
            self._tensors[name] = _Tensor(file, placed)

    def _chunks(self, file: str) -> Iterator[bytes]:
        size = self._files[file].size
        for start in range(0, size, REQUEST_BYTES):
            yield self._fetch(file, start, min(start + REQUEST_BYTES, size))

    def _fetch(self, file: str, start: int, stop: int) -> bytes:
        blob = self._files[file]
        data = self._blobs.read(blob, start, stop)
        if len(data) != stop - start:
            raise TransferError(
                f"{blob.uri}: {len(data)} bytes came where {stop - start} were asked for"
            )
        return data

    def _check_digest(self, name: str, found: str) -> None:
        expected = self._entries[name].sha256
        if found != expected:
            raise InvalidCheckpointError(
                f"{self._files[name].uri} is not what was written: its sha256 is {found} and "
                f"{MANIFEST_FILE} says {expected}; use another checkpoint"
            )

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except BlobChangedError as exc:
            raise InvalidCheckpointError(
                f"{self._uri} was replaced or removed since it was opened; open it again"
            ) from exc


def place_of(uri: str, manifest: Manifest) -> str:
    """Where the files of a checkpoint are."""
    return f"{uri}/{manifest.directory}" if manifest.directory else uri


def check_blob(blob: Blob, entry: FileEntry) -> None:
    """Compare what a store says of a file with the manifest.

    Raises:
        InvalidCheckpointError: they differ.
    """
    if blob.size != entry.size:
        raise InvalidCheckpointError(
            f"{blob.uri} has {blob.size} bytes and {MANIFEST_FILE} says {entry.size}; "
            "use another checkpoint or write it again"
        )
    if blob.sha256 not in (None, entry.sha256):
        raise InvalidCheckpointError(
            f"{blob.uri} is not what was written: its sha256 is {blob.sha256} and "
            f"{MANIFEST_FILE} says {entry.sha256}; use another checkpoint"
        )
