"""What every blob store checks: URIs and ranges."""

from __future__ import annotations

from glm3sdk.errors import BlobAccessError, TransferError
from glm3sdk.ports.blob_store import Blob


def check_blob_uri(uri: str) -> None:
    """Refuse what cannot be the URI of one blob.

    A segment "..", or "%2e%2e", is refused rather than resolved: a name that a server or an index
    gave must not lead out of its prefix.

    Raises:
        BlobAccessError: it ends in a slash, or a segment of it is "." or "..".
    """
    segments = uri.replace("%2E", ".").replace("%2e", ".").split("/")
    if not segments[-1]:
        raise BlobAccessError(f"{uri!r} names no blob; pass a URI that does not end in a slash")
    if {".", ".."} & set(segments) or "\0" in uri:
        raise BlobAccessError(
            f"{uri!r} is not a plain URI of a blob; pass one without '.', '..' or a null character"
        )


def check_range(blob: Blob, start: int, stop: int) -> None:
    """Refuse a range that does not lie within a blob.

    Raises:
        TransferError: it does not.
    """
    if not 0 <= start <= stop <= blob.size:
        raise TransferError(
            f"{blob.uri} has {blob.size} bytes, and none at [{start}, {stop}); "
            "what names this range does not fit the blob"
        )
