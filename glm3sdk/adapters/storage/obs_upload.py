"""Uploads to an object store in parts, which go on where a killed process stopped.

Nothing is noted locally: the store itself lists the parts that it has, and a part whose size
and MD5 are those of the local bytes is not sent again, whoever sent it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import attrs

from glm3sdk.adapters.storage.obs_errors import LostUploadError
from glm3sdk.errors import BlobAccessError, BlobUnavailableError, Glm3Error, TransferError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        PutObjectOutputTypeDef,
        UploadPartOutputTypeDef,
    )

T = TypeVar("T")

_MOST_PARTS = 10_000
_MEBIBYTE = 1 << 20
_IN_FLIGHT = 128 * _MEBIBYTE
_BEGINNINGS = 3


class Trying(Protocol):
    """Does something, again where that may help, and translates its errors."""

    def __call__(self, action: Callable[[], T], /) -> T:
        """Do it."""


@attrs.frozen
class Content:
    """Bytes to send: in memory, or of an open file.

    Attributes:
        name: for messages.
        size: bytes.
    """

    name: str
    size: int
    _source: bytes | int
    _status: tuple[int, int] | None = None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)`.

        Raises:
            TransferError: the file cannot be read, or is shorter than it was.
        """
        if isinstance(self._source, bytes):
            return self._source[start:stop]
        parts, at = [], start
        while at < stop:
            try:
                parts.append(os.pread(self._source, stop - at, at))
            except OSError as exc:
                raise TransferError(f"cannot read {self.name}: {exc.strerror or exc}") from exc
            if not parts[-1]:
                raise self._changed()
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sha256(self) -> str:
        """The digest of all of it."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _MEBIBYTE):
            digest.update(self.read(start, min(start + _MEBIBYTE, self.size)))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise a TransferError where the file was written to since it was opened."""
        if self._status is not None and self._status != _status(self._source):
            raise self._changed()

    def _changed(self) -> TransferError:
        return TransferError(
            f"{self.name} changed while it was sent, and nothing was published; send it again "
            "when nobody writes to it"
        )


@contextmanager
def opened(source: bytes | Path) -> Iterator[Content]:
    """Open what is to be sent.

    Raises:
        TransferError: the file cannot be read.
    """
    if not isinstance(source, Path):
        yield Content("the content", len(source), bytes(source))
        return
    try:
        file = source.open("rb", buffering=0)
    except OSError as exc:
        raise TransferError(f"cannot read {source}: {exc.strerror or exc}") from exc
    with file:
        status = _status(file.fileno())
        yield Content(str(source), status[0], file.fileno(), status)


@attrs.frozen(kw_only=True)
class Destination:
    """Where something is sent.

    Attributes:
        client: of the store.
        bucket: there.
        key: in the bucket.
        trying: carries out each request.
    """

    client: S3Client
    bucket: str
    key: str
    trying: Trying


def put(there: Destination, content: Content, sha256: str) -> str:
    """Send everything in one request. Returns the ETag, without quotes."""
    data = content.read(0, content.size)
    digest = hashlib.md5(data, usedforsecurity=False)
    content.check_unchanged()

    def send() -> str:
        answer = there.client.put_object(
            Bucket=there.bucket,
            Key=there.key,
            Body=data,
            ContentMD5=base64.b64encode(digest.digest()).decode(),
            Metadata={"sha256": sha256},
        )
        return _checked_etag(answer, digest.hexdigest(), there.key)

    return there.trying(send)


def put_parts(
    there: Destination, content: Content, sha256: str, *, part_size: int, threads: int
) -> str:
    """Send in parts, several at a time, going on with an upload that was cut off.

    After `BlobUnavailableError` the parts that arrived stay for the next try; after any other
    error of this package they are removed.

    Args:
        there: where to.
        content: what is sent.
        sha256: of the content.
        part_size: bytes of a part; larger where 10,000 of them would not do.
        threads: parts at a time at most; fewer where they would fill the memory.

    Returns:
        The ETag, without quotes.

    Raises:
        TransferError: the content changed, or another writer kept removing the parts.
    """
    size = max(part_size, -(-content.size // _MOST_PARTS))
    ranges = {
        number: (start, min(start + size, content.size))
        for number, start in enumerate(range(0, content.size, size), 1)
    }
    with ThreadPoolExecutor(max(1, min(threads, _IN_FLIGHT // size))) as pool:
        upload = _PartedUpload(there, content, sha256, ranges, pool)
        for beginning in range(_BEGINNINGS):
            try:
                return upload.send(resume=beginning == 0)
            except LostUploadError:
                # Completed by a request whose answer was lost, or by another process.
                if (etag := upload.completed_etag()) is not None:
                    return etag
    raise TransferError(
        f"the parts of {there.key} were removed {_BEGINNINGS} times while they were sent; see who "
        "else writes there, and send it again"
    )


@attrs.frozen
class _PartedUpload:
    there: Destination
    content: Content
    sha256: str
    ranges: Mapping[int, tuple[int, int]]
    pool: ThreadPoolExecutor

    def send(self, *, resume: bool) -> str:
        found = self._resumable() if resume else None
        upload_id, etags = found or (self._begin(), {})
        try:
            missing = [number for number in self.ranges if number not in etags]
            etags |= self._all(lambda number: self._send_part(upload_id, number), missing)
            self.content.check_unchanged()
            etag = self._complete(upload_id, etags)
        except (BlobUnavailableError, LostUploadError):
            raise
        except Glm3Error:
            with suppress(Glm3Error):
                self._abort(upload_id)
            raise
        self._check(etag)
        return etag

    def completed_etag(self) -> str | None:
        """The ETag of what is published, if it is this content."""
        there = self.there
        listed = there.trying(
            lambda: there.client.list_objects_v2(Bucket=there.bucket, Prefix=there.key, MaxKeys=1)
        )
        if [entry.get("Key") for entry in listed.get("Contents", [])] != [there.key]:
            return None
        head = there.trying(lambda: there.client.head_object(Bucket=there.bucket, Key=there.key))
        same = (head["ContentLength"], head["Metadata"].get("sha256"))
        return plain(head["ETag"]) if same == (self.content.size, self.sha256) else None

    def _begin(self) -> str:
        there = self.there
        return there.trying(
            lambda: there.client.create_multipart_upload(
                Bucket=there.bucket, Key=there.key, Metadata={"sha256": self.sha256}
            )
        )["UploadId"]

    def _resumable(self) -> tuple[str, dict[int, str]] | None:
        """An upload that was begun, all of whose parts are ours; with their ETags."""
        there = self.there
        pages = there.client.get_paginator("list_multipart_uploads")

        def begun() -> list[str]:
            return [
                upload["UploadId"]
                for page in pages.paginate(Bucket=there.bucket, Prefix=there.key)
                for upload in page.get("Uploads", [])
                if upload["Key"] == there.key
            ]

        try:
            upload_ids = there.trying(begun)
        except BlobAccessError:  # one may be allowed to write and not to list uploads
            return None
        for upload_id in reversed(upload_ids):
            # One without parts may be of other content, with another digest in its metadata.
            if parts := self._own_parts(upload_id):
                return upload_id, parts
        return None

    def _own_parts(self, upload_id: str) -> dict[int, str] | None:
        there = self.there
        pages = there.client.get_paginator("list_parts")

        def listed() -> dict[int, tuple[int, str]]:
            return {
                part["PartNumber"]: (part["Size"], plain(part["ETag"]))
                for page in pages.paginate(Bucket=there.bucket, Key=there.key, UploadId=upload_id)
                for part in page.get("Parts", [])
            }

        try:
            parts = there.trying(listed)
        except LostUploadError:
            return None
        sizes = {number: stop - start for number, (start, stop) in self.ranges.items()}
        if any(sizes.get(number) != size for number, (size, _) in parts.items()):
            return None
        theirs = {number: etag for number, (_, etag) in parts.items()}
        return theirs if self._all(self._md5, theirs) == theirs else None

    def _md5(self, number: int) -> str:
        return hashlib.md5(
            self.content.read(*self.ranges[number]), usedforsecurity=False
        ).hexdigest()

    def _send_part(self, upload_id: str, number: int) -> str:
        there, data = self.there, self.content.read(*self.ranges[number])
        digest = hashlib.md5(data, usedforsecurity=False)

        def send() -> str:
            answer = there.client.upload_part(
                Bucket=there.bucket,
                Key=there.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ContentMD5=base64.b64encode(digest.digest()).decode(),
            )
            return _checked_etag(answer, digest.hexdigest(), there.key)

        return there.trying(send)

    def _complete(self, upload_id: str, etags: Mapping[int, str]) -> str:
        there = self.there
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": f'"{etags[number]}"'} for number in sorted(etags)
        ]
        answer = there.trying(
            lambda: there.client.complete_multipart_upload(
                Bucket=there.bucket,
                Key=there.key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        )
        return plain(answer["ETag"])

    def _check(self, etag: str) -> None:
        """See that what is published is whole, unless another writer replaced it already."""
        there = self.there
        head = there.trying(lambda: there.client.head_object(Bucket=there.bucket, Key=there.key))
        if plain(head["ETag"]) != etag:
            return
        if head["ContentLength"] != self.content.size:
            raise TransferError(
                f"{there.key} arrived with {head['ContentLength']} of {self.content.size} bytes; "
                "send it again"
            )
        if head["Metadata"].get("sha256") != self.sha256:
            # Another process began it for content that starts alike: the digest is of that.
            raise LostUploadError(f"{there.key} bears another digest; send it again")

    def _abort(self, upload_id: str) -> None:
        there = self.there
        there.trying(
            lambda: there.client.abort_multipart_upload(
                Bucket=there.bucket, Key=there.key, UploadId=upload_id
            )
        )

    def _all(self, act: Callable[[int], str], numbers: Iterable[int]) -> dict[int, str]:
        """Act on parts, several at a time; the first error cancels what has not begun."""
        running = {self.pool.submit(act, number): number for number in numbers}
        try:
            return {running[done]: done.result() for done in as_completed(running)}
        except BaseException:
            for future in running:
                future.cancel()
            wait(running)  # a part that arrives after its upload was removed would be kept
            raise


def plain(etag: str) -> str:
    """An ETag without its quotes: some servers leave them out in lists."""
    return etag.strip('"')


def _checked_etag(
    answer: PutObjectOutputTypeDef | UploadPartOutputTypeDef, md5: str, key: str
) -> str:
    etag = plain(answer["ETag"])
    # With a key of a key service the ETag is not an MD5, and the server checked Content-MD5.
    if etag != md5 and answer.get("ServerSideEncryption", "AES256") == "AES256":
        raise BlobUnavailableError(f"{key} did not arrive as it was sent; try again")
    return etag


def _status(file: bytes | int) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
