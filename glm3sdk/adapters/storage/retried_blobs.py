"""A blob store that tries again."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from glm3sdk.adapters.storage.retries import retried
from glm3sdk.ports.blob_store import Blob, BlobStore

# A store may try again within a write, part by part.
_WRITE_ATTEMPTS = 3


class RetriedBlobs:
    """A `BlobStore` that does what another one does, and again where that is unavailable.

    Args:
        blobs: the other one.
        sleep: waits between two tries, in seconds.
    """

    def __init__(self, blobs: BlobStore, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._blobs, self._sleep = blobs, sleep

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None."""
        return retried(lambda: self._blobs.stat(uri), sleep=self._sleep)

    def list(self, uri: str) -> Iterator[Blob]:
        """Every blob below `uri`, sorted by URI; all are known when the first is given."""
        return iter(retried(lambda: builtins.list(self._blobs.list(uri)), sleep=self._sleep))

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a blob."""
        return retried(lambda: self._blobs.read(blob, start, stop), sleep=self._sleep)

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Put bytes, or a local file's, at `uri`."""
        return retried(
            lambda: self._blobs.write(uri, source), attempts=_WRITE_ATTEMPTS, sleep=self._sleep
        )

    def delete(self, uri: str) -> None:
        """Remove what is at `uri`."""
        retried(lambda: self._blobs.delete(uri), sleep=self._sleep)
