"""A small web server that misbehaves on demand; its faults are planned like the S3 double's.

    with WebServer() as server:
        server.pages["/model.bin"] = Page(content)
        server.on("GET", times=2, status=503)   # the next two GETs fail

A server in the benchmarks or by hand: `python -m servers.web_server FILE`, with tests/ on
PYTHONPATH, prints the address of FILE and serves until its standard input is closed.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import attrs

MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
_WAIT_S = 30.0


@attrs.frozen
class Page:
    """What is at a path.

    Attributes:
        content: its bytes.
        etag: None where the server tells none; quotes belong to it.
        modified: the same for Last-Modified.
        headers: further ones, or others in their place; an empty one is left out.
        moved: where it redirects to instead.
    """

    content: bytes = b""
    etag: str | None = attrs.field()
    modified: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    moved: str | None = None

    @etag.default
    def _digest(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'


@attrs.frozen
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@attrs.define
class Fault:
    """What goes wrong with the next requests that match; see `S3Double` for the words."""

    method: str
    path: str | None
    skip: int
    times: int
    before: Callable[[], object] | None
    status: int | None
    headers: Mapping[str, str]
    flip: int | None
    body: int | None
    end: bool
    hold: threading.Event | None

    def fits(self, seen: Seen) -> bool:
        return self.times > 0 and seen.method == self.method and self.path in (None, seen.path)


class WebServer:
    """The server. Its state may be looked at and changed while it serves.

    Attributes:
        pages: by path.
        seen: every request, in the order of arrival.
        ranges: whether it knows Range.
        conditions: whether it knows If-Match and If-Unmodified-Since.
        heads: the status that it answers HEAD with; 200: as it should.
        chunked: whether it sends bodies without a length, in chunks.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[Seen] = []
        self.ranges = self.conditions = True
        self.heads, self.chunked, self.tls = 200, False, tls
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._server = _Server(self)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def on(
        self,
        method: str,
        *,
        path: str | None = None,
        skip: int = 0,
        times: int = 1,
        before: Callable[[], object] | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        flip: int | None = None,
        body: int | None = None,
        end: bool = False,
        hold: threading.Event | None = None,
    ) -> None:
        """Plan a fault for `times` requests that match, after `skip` others that match.

        Args:
            end: after `body` bytes the connection is closed properly and not reset.
        """
        fault = Fault(
            method, path, skip, times, before, status, headers or {}, flip, body, end, hold
        )
        with self._lock:
            self._faults.append(fault)

    def take_fault(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.seen.append(seen)
            for fault in self._faults:
                if fault.fits(seen):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str) -> int:
        with self._lock:
            return sum(seen.method == method for seen in self.seen)

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

    def __init__(self, owner: WebServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(ConnectionError, ssl.SSLError), ExitStack() as stack:
            if self.owner.tls:
                request = self.owner.tls.wrap_socket(request, server_side=True)
                stack.callback(request.close)
            super().finish_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    fault: Fault | None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        """Be a proxy to whatever name, which is this machine."""
        self.server.owner.take_fault(
            Seen("CONNECT", self.path, "", {k.lower(): v for k, v in self.headers.items()})
        )
        port = int(self.path.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as other:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(other, self.connection))
            back.start()
            _copy(self.connection, other)
            back.join()
        self.close_connection = True

    def do_GET(self) -> None:
        owner, parts = self.server.owner, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, unquote(parts.path), parts.query, headers)
        self.fault = owner.take_fault(seen)
        if self.fault and self.fault.before:
            self.fault.before()
        if self.fault and self.fault.status:
            self._send(self.fault.status, self.fault.headers)
        elif self.command == "HEAD" and owner.heads != 200:
            self._send(owner.heads)
        elif (page := owner.pages.get(seen.path)) is None:
            self._send(404)
        elif page.moved:
            self._send(302, {"Location": page.moved})
        else:
            self._send_page(page, headers)

    do_HEAD = do_GET

    def _send_page(self, page: Page, asked: Mapping[str, str]) -> None:
        owner, size = self.server.owner, len(page.content)
        headers = {"ETag": page.etag or "", "Last-Modified": page.modified or "", **page.headers}
        unchanged = asked.get("if-unmodified-since", page.modified) == page.modified
        if owner.conditions and (asked.get("if-match", page.etag) != page.etag or not unchanged):
            self._send(412)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.get("range", ""))
        if self.command == "HEAD" or not wanted or not owner.ranges:
            self._send(200, headers, page.content)
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, size)
        if start >= size:
            self._send(416, {"Content-Range": f"bytes */{size}"})
            return
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", **headers}
        self._send(206, headers, memoryview(page.content)[start:stop])

    def _send(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes | memoryview = b""
    ) -> None:
        fault, chunked = self.fault, self.server.owner.chunked and self.command != "HEAD"
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**length, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.flip is not None:
            changed = bytearray(body)
            changed[fault.flip] ^= 1
            body = memoryview(changed)
        if fault and fault.body is not None:
            self.connection.sendall(memoryview(body)[: fault.body])
            if fault.hold is None or not fault.hold.wait(_WAIT_S):
                self._hang_up(reset=not fault.end)
                return
            body = memoryview(body)[fault.body :]
        if chunked:
            if body:
                self.connection.sendall(b"%x\r\n" % len(body) + bytes(body) + b"\r\n")
            body = b"0\r\n\r\n"
        self.connection.sendall(body)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        with suppress(OSError):
            if reset:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            self.connection.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main() -> None:
    with WebServer() as server:
        server.pages["/file"] = Page(Path(sys.argv[1]).read_bytes())
        sys.stdout.write(f"{server.address}/file\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
