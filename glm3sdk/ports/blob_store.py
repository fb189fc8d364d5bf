"""The port of blob stores: bytes under URIs, read by range and written whole.

The safe transfer loop (retries, journal, digests) is written once, in
`glm3sdk.adapters.storage.transfer`; a store only has to tell the truth about one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import attrs


@attrs.frozen
class Blob:
    """What a store says about one blob.

    Attributes:
        uri: where it is.
        size: bytes.
        version: changes whenever the content does (an ETag, for instance); None where the
            store cannot tell, and then only a digest notices that it was replaced.
        sha256: lower-case hexadecimal, where the store knows it without reading.
    """

    uri: str
    size: int
    version: str | None = None
    sha256: str | None = None


class BlobStore(Protocol):
    """Where bytes live. Contract: `glm3sdk.testing.BlobStoreContract`.

    Methods may be called from several threads at once. Each raises `BlobUnavailableError`
    where another try may succeed (a dropped connection, 503), and `BlobAccessError` where
    it will not until a person acts (credentials, a missing bucket, a wrong clock).
    """

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None where there is nothing."""

    def list(self, uri: str) -> Iterator[Blob]:
        """Every blob below `uri` (that is, under "URI/"), at any depth, sorted by URI.

        Raises:
            UnsupportedOptionError: the store cannot list (a plain web server).
        """

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a blob, exactly so many.

        Raises:
            BlobChangedError: what is there now has another version, or is gone.
        """

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Put bytes, or a local file's, at `uri`: whole or not at all, in place of what is there.

        Raises:
            UnsupportedOptionError: the store is read-only.
        """

    def delete(self, uri: str) -> None:
        """Remove what is at `uri`; nothing happens where there is nothing."""
