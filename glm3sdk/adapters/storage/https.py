"""Blobs on web servers: read by range over verified TLS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from urllib3.response import BaseHTTPResponse

from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.adapters.storage.web_client import WebClient, refuse
from glm3sdk.errors import (
    BlobChangedError,
    BlobUnavailableError,
    TransferError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob

_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-(?P<last>\d+)/(?P<size>\d+|\*)")
_NO_RANGE = re.compile(r"bytes \*/(?P<size>\d+)")
_NO_HEAD = (400, 403, 405, 501)
_GONE = (404, 410)
_MOST_SKIPPED = 64 * 1024 * 1024


class HttpsBlobStore:
    """A read-only `BlobStore` for https:// addresses, and http:// ones of this machine itself.

    A version is a strong ETag, or else the time of the last change. Credentials in an address
    are sent to its server alone, and appear in no message.

    Args:
        headers: sent along, but not to another server that a redirect leads to.
        ca_file: certificates to trust instead of the system's (SSL_CERT_FILE).
        connect_timeout_s: for a connection.
        read_timeout_s: for the next bytes.
    """

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 60.0,
    ) -> None:
        self._web = WebClient(
            headers=headers or {},
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None.

        Raises:
            BlobAccessError: the server refuses, or the address or certificate is not sound.
            BlobUnavailableError: it does not answer.
            TransferError: it does not say how long the blob is.
            OfflineError: the offline switch is on.
        """
        _check(uri)
        with self._web.request("HEAD", uri, {}) as response:
            if response.status in _GONE:
                return None
            if response.status == 200:
                _check_plain(uri, response)
                if (length := response.headers.get("Content-Length", "")).isdigit():
                    return Blob(uri, int(length), _version(response))
            elif response.status not in _NO_HEAD:
                refuse(uri, response)
        return self._stat_by_get(uri)

    def list(self, uri: str) -> Iterator[Blob]:
        """Not offered.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(
            f"{shown(uri)}: a web server lists no files; name the file that is wanted"
        )

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a blob.

        Raises:
            BlobChangedError: it was replaced or removed.
            BlobAccessError, BlobUnavailableError, OfflineError: as for `stat`.
            TransferError: the range is not within it, or the server cannot read ranges and
                the blob is too large to skip its beginning each time.
        """
        _check(blob.uri)
        check_range(blob, start, stop)
        if start == stop:
            return b""
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if blob.version is not None:
            strong = blob.version.startswith('"')
            headers["If-Match" if strong else "If-Unmodified-Since"] = blob.version
        with self._web.request("GET", blob.uri, headers) as response:
            if response.status in (*_GONE, 412, 416):
                raise _changed(blob)
            if response.status not in (200, 206):
                refuse(blob.uri, response)
            _check_plain(blob.uri, response)
            if not _same_version(blob.version, response):
                raise _changed(blob)
            if response.status == 206:
                _check_range_of(response, blob, start, stop)
            else:
                _skip(response, blob, start, stop)
            return _body(response, blob.uri, stop - start)

    def write(self, uri: str, source: bytes | Path) -> Blob:  # noqa: ARG002  # the port's
        """Not offered.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(
            f"{shown(uri)}: nothing is written to a web server; write to a directory or obs://"
        )

    def delete(self, uri: str) -> None:
        """Not offered.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(f"{shown(uri)}: nothing is deleted on a web server")

    def _stat_by_get(self, uri: str) -> Blob | None:
        """For a server that refuses HEAD, or does not tell the length by it."""
        with self._web.request("GET", uri, {"Range": "bytes=0-0"}) as response:
            if response.status in _GONE:
                return None
            told = response.headers.get("Content-Range", "")
            if response.status == 416 and (empty := _NO_RANGE.fullmatch(told)):
                return Blob(uri, int(empty["size"]), _version(response))
            if response.status not in (200, 206):
                refuse(uri, response)
            _check_plain(uri, response)
            size = response.headers.get("Content-Length", "")
            if response.status == 206:
                found = _CONTENT_RANGE.fullmatch(told)
                size = found["size"] if found else ""
            if not size.isdigit():
                raise TransferError(
                    f"{shown(uri)}: the server does not say how long it is; use another source"
                )
            return Blob(uri, int(size), _version(response))


def _check(uri: str) -> None:
    check_blob_uri(re.split(r"[?#]", shown(uri), maxsplit=1)[0])


def _check_plain(uri: str, response: BaseHTTPResponse) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise TransferError(
            f"{shown(uri)}: the server sends it compressed ({encoding[:20]}), though it was asked "
            "not to; use another source"
        )


def _version(response: BaseHTTPResponse) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _same_version(version: str | None, response: BaseHTTPResponse) -> bool:
    """Whether an answer is of a version: a server may not know the conditions of a request."""
    if version is None:
        return True
    name = "ETag" if version.startswith('"') else "Last-Modified"
    # A server in between may make an ETag a weak one on its way.
    return response.headers.get(name, version).removeprefix("W/") == version


def _check_range_of(response: BaseHTTPResponse, blob: Blob, start: int, stop: int) -> None:
    told = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(told)
    if found and found["size"] not in ("*", str(blob.size)):
        raise _changed(blob)
    if not found or (int(found["start"]), int(found["last"])) != (start, stop - 1):
        raise TransferError(
            f"{shown(blob.uri)}: bytes {start}-{stop - 1} were asked for and the server sends "
            f"{told[:60]!r}; use another source"
        )


def _skip(response: BaseHTTPResponse, blob: Blob, start: int, stop: int) -> None:
    """Read past what comes before a range, where the server sends everything."""
    length = response.headers.get("Content-Length")
    if length is not None and length != str(blob.size):
        raise _changed(blob)
    if start and stop > _MOST_SKIPPED:
        raise TransferError(
            f"{shown(blob.uri)}: the server sends no ranges, and {blob.size} bytes are too many "
            "to begin anew for each; use another source, or fetch it by other means and pass "
            "its path"
        )
    while start:
        skipped = len(response.read(min(start, 1024 * 1024)))
        if not skipped:
            raise BlobUnavailableError(f"{shown(blob.uri)}: the answer ended early")
        start -= skipped


def _body(response: BaseHTTPResponse, uri: str, size: int) -> bytes:
    data = response.read(size)
    while len(data) < size and (more := response.read(size - len(data))):
        data += more
    if len(data) < size:
        raise BlobUnavailableError(
            f"{shown(uri)}: the answer ended after {len(data)} of {size} bytes"
        )
    return data


def _changed(blob: Blob) -> BlobChangedError:
    return BlobChangedError(f"{shown(blob.uri)} was replaced or removed while it was read")
