"""Blobs in Huawei's OBS, or any other object store that speaks the S3 protocol."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glm3sdk.adapters.storage.obs_client import ObsConnection
from glm3sdk.adapters.storage.obs_errors import telling
from glm3sdk.adapters.storage.obs_upload import Destination, opened, plain, put, put_parts
from glm3sdk.adapters.storage.retries import retried
from glm3sdk.errors import BlobAccessError, BlobChangedError, BlobUnavailableError
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

PART_SIZE = 16 << 20
_URI = re.compile(
    r"(?:obs|s3)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,254})(?:/(?P<key>.*))?", re.DOTALL
)


class ObsBlobStore:
    """A `BlobStore` for `obs://BUCKET/KEY` and `s3://BUCKET/KEY`, the same store.

    A key is taken as it is: nothing in the URI is unquoted. A blob's version is its ETag; its
    sha256 is in the metadata of what this class wrote. Requests within `write` are tried again;
    for `stat`, `list` and `read` that is the caller's choice.

    Args:
        connection: endpoint, credentials and TLS; by default the environment's.
        part_size: above so many bytes a file is sent in parts of that size.
        threads: parts at a time.
        attempts: of each request within `write`.
        sleep: waits between them, in seconds.
    """

    def __init__(
        self,
        connection: ObsConnection | None = None,
        *,
        part_size: int = PART_SIZE,
        threads: int = 4,
        attempts: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = connection or ObsConnection()
        self._part_size, self._threads = part_size, threads
        self._attempts, self._sleep = attempts, sleep
        self._lock = threading.Lock()
        self._connected: S3Client | None = None

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None.

        Raises:
            BlobAccessError: credentials, permission, bucket or endpoint; the message says which.
            BlobUnavailableError: no answer.
        """
        bucket, key = _place(uri)
        client = self._client(uri)
        with self._telling(uri):
            try:
                head = client.head_object(Bucket=bucket, Key=key)
            except client.exceptions.ClientError as exc:
                if not 300 <= exc.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                    raise
                # The answer to HEAD has no body, and so does not say why.
                try:
                    client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
                except client.exceptions.NoSuchKey:
                    return None
                raise
        return Blob(uri, head["ContentLength"], plain(head["ETag"]), head["Metadata"].get("sha256"))

    def list(self, uri: str) -> Iterator[Blob]:
        """Every blob below `uri`, sorted by URI; folders, which consoles make, are left out.

        Raises:
            BlobAccessError: credentials, permission, bucket or endpoint; the message says which.
            BlobUnavailableError: no answer.
        """
        bucket, prefix = _place(f"{uri.rstrip('/')}/", of_blob=False)
        scheme = uri.partition(":")[0]
        pages = self._client(uri).get_paginator("list_objects_v2")
        with self._telling(uri):
            for page in pages.paginate(Bucket=bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        found = f"{scheme}://{bucket}/{entry['Key']}"
                        check_blob_uri(found)
                        yield Blob(found, entry["Size"], plain(entry["ETag"]))

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a blob.

        Raises:
            BlobChangedError: it was replaced or removed.
            BlobAccessError: credentials, permission, bucket or endpoint; the message says which.
            BlobUnavailableError: no answer, or not to the end.
            TransferError: the range is not within it.
        """
        bucket, key = _place(blob.uri)
        check_range(blob, start, stop)
        client = self._client(blob.uri)
        if start == stop:  # no range of HTTP is empty
            there = self.stat(blob.uri)
            if there is None or blob.version not in (None, there.version):
                raise _changed(blob)
            return b""
        pinned: dict[str, Any] = {} if blob.version is None else {"IfMatch": f'"{blob.version}"'}
        with self._telling(blob.uri):
            try:
                answer = client.get_object(
                    Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **pinned
                )
            except client.exceptions.ClientError as exc:
                code = exc.response["Error"]["Code"]
                if code in ("PreconditionFailed", "NoSuchKey", "InvalidRange", "412", "416"):
                    raise _changed(blob) from exc
                raise
            with closing(answer["Body"]) as body:
                if blob.version not in (None, plain(answer.get("ETag", ""))):
                    raise _changed(blob)
                told = answer.get("ContentRange", "")
                if told.rpartition("/")[2] not in ("", str(blob.size)):
                    raise _changed(blob)
                if told != f"bytes {start}-{stop - 1}/{blob.size}":
                    raise BlobAccessError(
                        f"{self._endpoint()} does not send ranges as asked ({told or 'none'} for "
                        f"[{start}, {stop}) of {blob.uri}); use another endpoint"
                    )
                content: bytes = body.read()
        if len(content) != stop - start:
            raise BlobUnavailableError(
                f"{blob.uri}: {len(content)} of {stop - start} bytes came; try again"
            )
        return content

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Put bytes or a file, in parts where it is large, and go on where a try was cut off.

        Raises:
            TransferError: the file cannot be read, or changed meanwhile.
            BlobAccessError: credentials, permission, bucket or endpoint; the message says which.
            BlobUnavailableError: the tries are used up; what arrived stays for the next call.
        """
        bucket, key = _place(uri)

        def trying(action: Callable[[], T]) -> T:
            def told() -> T:
                with self._telling(uri):
                    return action()

            return retried(told, attempts=self._attempts, sleep=self._sleep)

        with opened(source) as content:
            there = Destination(client=self._client(uri), bucket=bucket, key=key, trying=trying)
            sha256 = content.sha256()
            if content.size <= self._part_size:
                etag = put(there, content, sha256)
            else:
                size, threads = self._part_size, self._threads
                etag = put_parts(there, content, sha256, part_size=size, threads=threads)
            return Blob(uri, content.size, etag, sha256)

    def delete(self, uri: str) -> None:
        """Remove what is at `uri`.

        Raises:
            BlobAccessError: credentials, permission, bucket or endpoint; the message says which.
            BlobUnavailableError: no answer.
        """
        bucket, key = _place(uri)
        client = self._client(uri)
        with self._telling(uri):
            client.delete_object(Bucket=bucket, Key=key)

    def close(self) -> None:
        """Close the connections; the next call opens others."""
        with self._lock:
            client, self._connected = self._connected, None
        if client is not None:
            client.close()

    def _client(self, uri: str) -> S3Client:
        with self._lock:  # to build one takes long, and is not safe in several threads
            if self._connected is None:
                self._connected = self._connection.client(uri)
            return self._connected

    def _endpoint(self) -> str:
        return self._connected.meta.endpoint_url if self._connected else "the object store"

    def _telling(self, uri: str) -> AbstractContextManager[None]:
        return telling(uri, self._endpoint())


def _place(uri: str, *, of_blob: bool = True) -> tuple[str, str]:
    """The bucket and the key that a URI names."""
    match = _URI.fullmatch(uri)
    if match is None or (of_blob and not match["key"]):
        raise BlobAccessError(f"{uri!r} names no blob of an object store; pass obs://BUCKET/KEY")
    check_blob_uri(uri if of_blob else f"{uri}x")
    return match["bucket"], match["key"]


def _changed(blob: Blob) -> BlobChangedError:
    return BlobChangedError(f"{blob.uri} was replaced or removed while it was read")
