"""A server of our own that speaks the S3 protocol, checks signatures and misbehaves on demand.

In a test:

    with S3Double() as double:
        double.objects["bucket", "key"] = StoredObject(b"content")
        double.on("GET", times=2, status=503)   # the next two GETs fail

By itself, with tests/ on PYTHONPATH: `python -m servers.s3_double` prints its endpoint and
serves until its standard input is closed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import attrs
from servers.aws_v4 import RefusedSignatureError, check_signature

ACCESS_KEY = "AKIDDOUBLE"
SECRET_KEY = "double/secret+key"
_WAIT_S = 30.0
_ERRORS = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    500: "InternalError",
    503: "SlowDown",
}


@attrs.frozen
class StoredObject:
    """One object; its ETag is the MD5 of its content unless it came in parts."""

    content: bytes
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    etag: str = attrs.field()
    modified: datetime = attrs.field(factory=lambda: datetime.now(UTC))

    @etag.default
    def _md5(self) -> str:
        return hashlib.md5(self.content).hexdigest()


@attrs.define
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    bucket: str
    key: str
    metadata: Mapping[str, str]
    parts: dict[int, StoredObject] = attrs.field(factory=dict)


@attrs.frozen
class Seen:
    """A request as it arrived."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    host: str


@attrs.define
class Fault:
    """What goes wrong with the next requests that match.

    Attributes:
        before: called before the request is carried out; it may replace an object, or wait.
        status: answered instead of carrying it out.
        code: the error's code that goes with `status`.
        headers: further headers of that answer.
        flip: position of a byte that is changed on its way: in the answer's body, or in what a
            PUT stores, after its Content-MD5 was checked.
        body: this many bytes of the answer's body are sent, then the connection is reset (or,
            with `hold`, nothing more comes until that event).
        lose_reply: carry the request out, then reset the connection without an answer.
    """

    method: str
    key: str | None
    query: str | None
    skip: int
    times: int
    before: Callable[[], object] | None
    status: int | None
    code: str | None
    headers: Mapping[str, str]
    flip: int | None
    body: int | None
    hold: threading.Event | None
    lose_reply: bool

    def fits(self, seen: Seen) -> bool:
        return (
            self.times > 0
            and seen.method == self.method
            and self.key in (None, seen.key)
            and (self.query is None or self.query in seen.query)
        )


class S3Double:
    """The server. Its state may be looked at and changed while it serves.

    Attributes:
        objects: by bucket and key.
        buckets: the ones that exist.
        uploads: by upload id.
        seen: every request, in the order of arrival.
        clock_ahead: how far the server's clock is ahead.
        page_size: at most so many entries in an answer to a listing.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        region: str | None = None,
        token: str | None = None,
        buckets: Iterable[str] = ("bucket",),
        domain: str = "localhost",
    ) -> None:
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self.buckets = set(buckets)
        self.uploads: dict[str, Upload] = {}
        self.seen: list[Seen] = []
        self.clock_ahead = timedelta()
        self.page_size = 1000
        self.region, self.token, self.domain, self.tls = region, token, domain, tls
        self.lock = threading.Lock()
        self._faults: list[Fault] = []
        self._server = _Server(self)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def on(
        self,
        method: str,
        *,
        key: str | None = None,
        query: str | None = None,
        skip: int = 0,
        times: int = 1,
        before: Callable[[], object] | None = None,
        status: int | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        flip: int | None = None,
        body: int | None = None,
        hold: threading.Event | None = None,
        lose_reply: bool = False,
    ) -> None:
        """Plan a fault for `times` requests that match, after `skip` others that match."""
        fault = Fault(
            method, key, query, skip, times, before, status, code, headers or {}, flip, body, hold,
            lose_reply,
        )  # fmt: skip
        with self.lock:
            self._faults.append(fault)

    def take_fault(self, seen: Seen) -> Fault | None:
        with self.lock:
            self.seen.append(seen)
            for fault in self._faults:
                if fault.fits(seen):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, query: str | None = None) -> int:
        """How many requests there were of a method, with a parameter in their query."""
        with self.lock:
            return sum(
                s.method == method and (query is None or query in s.query) for s in self.seen
            )

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, double: S3Double) -> None:
        self.double = double
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # Here, in the connection's own thread, so that one bad handshake stops nobody.
        with suppress(ConnectionError, ssl.SSLError), ExitStack() as stack:
            if self.double.tls:
                request = self.double.tls.wrap_socket(request, server_side=True)
                stack.callback(request.close)
            super().finish_request(request, client_address)


class _StopError(Exception):
    """The connection is to be reset."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    fault: Fault | None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        double = self.server.double
        self.sent_headers = {name.lower(): value for name, value in self.headers.items()}
        self.body = bytearray(int(self.sent_headers.get("content-length", 0)))
        view = memoryview(self.body)
        while view and (count := self.rfile.readinto(view)):
            view = view[count:]
        parts = urlsplit(self.path)
        host = self.sent_headers.get("host", "").rsplit(":", 1)[0]
        path = unquote(parts.path)[1:]
        if host.endswith(f".{double.domain}"):
            bucket, key = host.removesuffix(f".{double.domain}"), path
        else:
            bucket, _, key = path.partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.seen = Seen(self.command, bucket, key, query, self.sent_headers, host)
        self.fault = double.take_fault(self.seen)
        try:
            if view:  # the client went away in the middle
                raise _StopError
            self._answer(parts.path, parts.query)
        except _StopError:
            self._reset()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self, path: str, query: str) -> None:
        double, fault = self.server.double, self.fault
        if fault and fault.before:
            fault.before()
        if fault and fault.status:
            self._error(fault.status, fault.code, headers=fault.headers)
            return
        try:
            check_signature(
                self.command,
                path,
                query,
                self.sent_headers,
                self.body,
                secrets={ACCESS_KEY: SECRET_KEY},
                token=double.token,
                region=double.region,
                now=datetime.now(UTC) + double.clock_ahead,
            )
        except RefusedSignatureError as refused:
            self._error(refused.status, refused.code, refused.details)
            return
        if self.seen.bucket not in double.buckets:
            self._error(404, "NoSuchBucket")
            return
        self.md5 = hashlib.md5(self.body)
        md5 = self.sent_headers.get("content-md5")
        if md5 and base64.b64decode(md5) != self.md5.digest():
            self._error(400, "BadDigest")
            return
        if fault and fault.flip is not None and self.command == "PUT":
            self.body[fault.flip] ^= 1
            self.md5 = hashlib.md5(self.body)
        with double.lock:
            send = self._act()
        send()

    def _act(self) -> Callable[[], None]:
        """Carry the request out, and say how to answer."""
        query, method = self.seen.query, self.command
        if not self.seen.key and method == "GET":
            return self._list_uploads() if "uploads" in query else self._list_objects()
        if "uploadId" in query:
            return self._of_upload(query["uploadId"])
        if method == "POST" and "uploads" in query:
            upload_id = secrets.token_hex(8)
            double = self.server.double
            double.uploads[upload_id] = Upload(self.seen.bucket, self.seen.key, self._metadata())
            return lambda: self._xml("InitiateMultipartUploadResult", _tag("UploadId", upload_id))
        return self._of_object()

    def _of_object(self) -> Callable[[], None]:
        objects, place = self.server.double.objects, (self.seen.bucket, self.seen.key)
        if self.command == "PUT":
            stored = objects[place] = self._stored(self._metadata())
            return lambda: self._send(200, {"ETag": f'"{stored.etag}"'})
        if self.command == "DELETE":
            objects.pop(place, None)
            return lambda: self._send(204)
        if place not in objects:
            return lambda: self._error(404, "NoSuchKey")
        return lambda stored=objects[place]: self._send_object(stored)  # type: ignore[misc]

    def _stored(self, metadata: Mapping[str, str]) -> StoredObject:
        return StoredObject(bytes(self.body), metadata, self.md5.hexdigest())

    def _send_object(self, stored: StoredObject) -> None:
        headers = {"ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}
        headers["Last-Modified"] = stored.modified.strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers |= {f"x-amz-meta-{name}": value for name, value in stored.metadata.items()}
        wanted = self.sent_headers.get("if-match")
        if wanted is not None and wanted.strip('"') != stored.etag:
            self._error(412, "PreconditionFailed")
            return
        size, given = len(stored.content), self.sent_headers.get("range")
        if given is None:
            self._send(200, headers, stored.content)
            return
        first, last = given.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or size) + 1, size)
        if start >= size:
            self._error(416, "InvalidRange")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(206, headers, memoryview(stored.content)[start:stop])

    def _of_upload(self, upload_id: str) -> Callable[[], None]:
        double, query = self.server.double, self.seen.query
        upload = double.uploads.get(upload_id)
        if upload is None or (upload.bucket, upload.key) != (self.seen.bucket, self.seen.key):
            return lambda: self._error(404, "NoSuchUpload")
        if self.command == "PUT":
            part = self._stored({})
            upload.parts[int(query["partNumber"])] = part
            return lambda: self._send(200, {"ETag": f'"{part.etag}"'})
        if self.command == "DELETE":
            del double.uploads[upload_id]
            return lambda: self._send(204)
        if self.command == "GET":
            return self._list_parts(upload)
        asked = [
            (int(part.findtext("{*}PartNumber") or 0), (part.findtext("{*}ETag") or "").strip('"'))
            for part in ET.fromstring(bytes(self.body)).iterfind("{*}Part")
        ]
        parts = [upload.parts.get(number) for number, _ in asked]
        if any(
            part is None or part.etag != etag for part, (_, etag) in zip(parts, asked, strict=True)
        ):
            return lambda: self._error(400, "InvalidPart")
        found = [part for part in parts if part is not None]
        digests = b"".join(bytes.fromhex(part.etag) for part in found)
        etag = f"{hashlib.md5(digests).hexdigest()}-{len(found)}"
        content = b"".join(part.content for part in found)
        place = (upload.bucket, upload.key)
        double.objects[place] = StoredObject(content, upload.metadata, etag)
        del double.uploads[upload_id]
        return lambda: self._xml("CompleteMultipartUploadResult", _tag("ETag", f'"{etag}"'))

    def _list_parts(self, upload: Upload) -> Callable[[], None]:
        after = int(self.seen.query.get("part-number-marker", 0))
        numbers = sorted(number for number in upload.parts if number > after)
        page = numbers[: self.server.double.page_size]
        text = _tag("IsTruncated", str(len(page) < len(numbers)).lower())
        text += _tag("NextPartNumberMarker", str(page[-1] if page else 0))
        for number in page:
            part = upload.parts[number]
            inner = _tag("PartNumber", str(number)) + _tag("ETag", f'"{part.etag}"')
            text += f"<Part>{inner}{_tag('Size', str(len(part.content)))}</Part>"
        return lambda: self._xml("ListPartsResult", text)

    def _list_uploads(self) -> Callable[[], None]:
        text, prefix = _tag("IsTruncated", "false"), self.seen.query.get("prefix", "")
        for upload_id, upload in self.server.double.uploads.items():
            if upload.bucket == self.seen.bucket and upload.key.startswith(prefix):
                inner = _tag("Key", upload.key) + _tag("UploadId", upload_id)
                text += f"<Upload>{inner}{_tag('Initiated', '2024-01-01T00:00:00.000Z')}</Upload>"
        return lambda: self._xml("ListMultipartUploadsResult", text)

    def _list_objects(self) -> Callable[[], None]:
        double, query = self.server.double, self.seen.query
        after = bytes.fromhex(query.get("continuation-token", "")).decode()
        prefix, bucket = query.get("prefix", ""), self.seen.bucket
        keys = sorted(
            key
            for of, key in double.objects
            if of == bucket and key.startswith(prefix) and key > after
        )
        page = keys[: min(double.page_size, int(query.get("max-keys", 1000)))]
        text = _tag("IsTruncated", str(len(page) < len(keys)).lower())
        if len(page) < len(keys):
            text += _tag("NextContinuationToken", page[-1].encode().hex())
        if query.get("encoding-type") == "url":
            text += _tag("EncodingType", "url")
        for key in page:
            stored = double.objects[bucket, key]
            shown = quote(key) if query.get("encoding-type") == "url" else key
            inner = _tag("Key", shown) + _tag("Size", str(len(stored.content)))
            inner += _tag("ETag", f'"{stored.etag}"')
            text += f"<Contents>{inner}</Contents>"
        return lambda: self._xml("ListBucketResult", text)

    def _metadata(self) -> dict[str, str]:
        start = "x-amz-meta-"
        named = self.sent_headers.items()
        return {name.removeprefix(start): v for name, v in named if name.startswith(start)}

    def _xml(self, root: str, inner: str, status: int = 200, **headers: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inner}</{root}>'
        self._send(status, {"Content-Type": "application/xml", **headers}, text.encode())

    def _error(
        self,
        status: int,
        code: str | None = None,
        details: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        inner = _tag("Code", code or _ERRORS.get(status, "Other"))
        inner += "".join(_tag(name, value) for name, value in (details or {}).items())
        self._xml("Error", inner, status, **(headers or {}))

    def date_time_string(self, timestamp: float | None = None) -> str:
        ahead = self.server.double.clock_ahead
        return (datetime.now(UTC) + ahead).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def _send(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes | memoryview = b""
    ) -> None:
        fault = self.fault
        if fault and fault.lose_reply:
            raise _StopError
        self.send_response(status)
        for name, value in {"x-amz-request-id": "double", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.flip is not None and self.command == "GET":
            changed = bytearray(body)
            changed[fault.flip] ^= 1
            body = changed  # type: ignore[assignment]  # any buffer can be sent
        if fault and fault.body is not None:
            self.connection.sendall(memoryview(body)[: fault.body])
            if fault.hold is None or not fault.hold.wait(_WAIT_S):
                raise _StopError
            body = memoryview(body)[fault.body :]
        self.connection.sendall(body)

    def _reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


def _tag(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def main() -> None:
    with S3Double() as double:
        sys.stdout.write(f"{double.endpoint}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
