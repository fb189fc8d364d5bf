"""A blob store that lives in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from glm3sdk.errors import BlobChangedError, TransferError
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob


class MemoryBlobStore:
    """A `BlobStore` whose blobs end with it; it takes any URI."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes = 0
        self._stored: dict[str, tuple[Blob, bytes]] = {}

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None."""
        check_blob_uri(uri)
        with self._lock:
            stored = self._stored.get(uri)
        return stored and stored[0]

    def list(self, uri: str) -> Iterator[Blob]:
        """Every blob below `uri`, sorted by URI."""
        start = uri.rstrip("/") + "/"
        with self._lock:
            found = sorted(key for key in self._stored if key.startswith(start))
            return iter([self._stored[key][0] for key in found])

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a blob.

        Raises:
            BlobChangedError: it was replaced or removed.
            TransferError: the range is not within it.
        """
        check_range(blob, start, stop)
        with self._lock:
            there, content = self._stored.get(blob.uri, (None, b""))
        if there is None or blob.version not in (None, there.version):
            raise BlobChangedError(f"{blob.uri} was replaced or removed while it was read")
        return content[start:stop]

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Keep a copy of bytes, or of a file's.

        Raises:
            TransferError: the file cannot be read.
        """
        check_blob_uri(uri)
        try:
            content = source.read_bytes() if isinstance(source, Path) else bytes(source)
        except OSError as exc:
            raise TransferError(f"cannot read {source!s}: {exc.strerror}") from exc
        digest = hashlib.sha256(content).hexdigest()
        with self._lock:
            self._writes += 1
            blob = Blob(uri, len(content), version=str(self._writes), sha256=digest)
            self._stored[uri] = (blob, content)
        return blob

    def delete(self, uri: str) -> None:
        """Forget what is at `uri`."""
        check_blob_uri(uri)
        with self._lock:
            self._stored.pop(uri, None)
