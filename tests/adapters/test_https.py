from __future__ import annotations

import gzip
import hashlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from servers.certificates import Certificate, write_certificate
from servers.web_server import MODIFIED, Page, WebServer

from glm3sdk.adapters.storage.https import HttpsBlobStore
from glm3sdk.adapters.storage.retries import BusyError
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.adapters.storage.transfer import download
from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    OfflineError,
    TransferError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_store import Blob

CONTENT = bytes(range(256)) * 40
OTHER = bytes(reversed(CONTENT))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLM3SDK_OFFLINE", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.pages["/a.bin"] = Page(CONTENT)
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Certificate) -> Iterator[WebServer]:
    with WebServer(tls=certificate.server_context()) as server:
        server.pages["/a.bin"] = Page(CONTENT)
        yield server


@pytest.fixture
def store() -> HttpsBlobStore:
    return HttpsBlobStore(read_timeout_s=5)


def stat(store: HttpsBlobStore, uri: str) -> Blob:
    blob = store.stat(uri)
    assert blob is not None
    return blob


def trusting(certificate: Certificate, **settings: object) -> HttpsBlobStore:
    return HttpsBlobStore(ca_file=str(certificate.certificate), **settings)


def test_a_blob_is_its_length_and_its_strong_etag(server: WebServer, store: HttpsBlobStore) -> None:
    server.pages["/empty"] = Page(b"")
    for path, content in (("/a.bin", CONTENT), ("/empty", b"")):
        uri = server.address + path
        assert store.stat(uri) == Blob(uri, len(content), server.pages[path].etag)
    assert server.count("GET") == 0
    assert store.stat(f"{server.address}/nothing") is None


@pytest.mark.parametrize(
    ("etag", "modified", "version"),
    [
        ('"x"', MODIFIED, '"x"'),
        ('W/"x"', MODIFIED, MODIFIED),
        (None, MODIFIED, MODIFIED),
        ('W/"x"', None, None),
        (None, None, None),
    ],
)
def test_without_a_strong_etag_the_time_of_change_is_the_version(
    server: WebServer,
    store: HttpsBlobStore,
    etag: str | None,
    modified: str | None,
    version: str | None,
) -> None:
    server.pages["/a.bin"] = Page(CONTENT, etag=etag, modified=modified)
    blob = stat(store, f"{server.address}/a.bin")
    assert blob.version == version
    assert store.read(blob, 3, 300) == CONTENT[3:300]


@pytest.mark.parametrize("status", [400, 403, 405, 501])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_refuses_head_is_asked_for_a_byte(
    server: WebServer, store: HttpsBlobStore, status: int, ranges: bool
) -> None:
    server.heads, server.ranges = status, ranges
    server.pages["/empty"] = Page(b"")
    for path, size in (("/a.bin", len(CONTENT)), ("/empty", 0)):
        assert stat(store, server.address + path).size == size
    assert store.stat(f"{server.address}/nothing") is None


def test_a_length_that_nobody_tells_is_an_error(server: WebServer, store: HttpsBlobStore) -> None:
    server.heads, server.ranges, server.chunked = 405, False, True
    with pytest.raises(TransferError, match="does not say how long it is; use another source"):
        store.stat(f"{server.address}/a.bin")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 10240), (17, 4000), (10239, 10240)])
def test_a_range_is_read_exactly_whether_or_not_the_server_knows_ranges(
    server: WebServer, store: HttpsBlobStore, start: int, stop: int, chunked: bool
) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    server.chunked = chunked
    assert store.read(blob, start, stop) == CONTENT[start:stop]
    assert server.seen[-1].headers["if-match"] == blob.version
    assert server.seen[-1].headers["accept-encoding"] == "identity"
    server.ranges = False
    assert store.read(blob, start, stop) == CONTENT[start:stop]
    assert store.read(blob, start, start) == b""
    with pytest.raises(TransferError, match="none at"):
        store.read(blob, start, len(CONTENT) + 1)


def test_a_large_blob_is_not_begun_anew_for_each_range(
    server: WebServer, store: HttpsBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm3sdk.adapters.storage.https._MOST_SKIPPED", 5000)
    server.ranges = False
    blob = stat(store, f"{server.address}/a.bin")
    assert store.read(blob, 0, 9000) == CONTENT[:9000]
    with pytest.raises(TransferError, match=r"sends no ranges.*pass its path"):
        store.read(blob, 4999, 5001)


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "pages",
    [
        (Page(CONTENT), Page(OTHER)),
        (Page(CONTENT), Page(OTHER[:-1])),
        (Page(CONTENT, etag=None, modified=MODIFIED), Page(OTHER, etag=None, modified="later")),
        (Page(CONTENT, etag=None), Page(OTHER[:-1], etag=None)),
        (Page(CONTENT), None),
        (Page(CONTENT), Page(b"")),
    ],
)
def test_what_was_replaced_is_not_read(
    server: WebServer,
    store: HttpsBlobStore,
    pages: tuple[Page, Page | None],
    ranges: bool,
    conditions: bool,
) -> None:
    server.pages["/a.bin"] = pages[0]
    blob = stat(store, f"{server.address}/a.bin")
    server.conditions, server.ranges = conditions, ranges
    del server.pages["/a.bin"]
    if pages[1]:
        server.pages["/a.bin"] = pages[1]
    for start, stop in ((0, 100), (200, len(CONTENT))):
        with pytest.raises(BlobChangedError, match="was replaced or removed"):
            store.read(blob, start, stop)


def test_an_etag_that_became_a_weak_one_on_its_way_is_the_same(
    server: WebServer, store: HttpsBlobStore
) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    server.conditions = False
    server.pages["/a.bin"] = Page(CONTENT, etag=f"W/{blob.version}")
    assert store.read(blob, 0, 10) == CONTENT[:10]


@pytest.mark.parametrize("told", ["bytes 1-10/10240", "bytes 0-99/10240", "bytes", ""])
def test_another_range_than_the_one_that_was_asked_for_is_refused(
    server: WebServer, store: HttpsBlobStore, told: str
) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    server.pages["/a.bin"] = Page(CONTENT, headers={"Content-Range": told})
    with pytest.raises(TransferError, match=r"bytes 0-9 were asked for and the server sends"):
        store.read(blob, 0, 10)


def test_a_compressed_answer_is_refused(server: WebServer, store: HttpsBlobStore) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    squeezed = {"Content-Encoding": "gzip"}
    server.pages["/a.bin"] = Page(gzip.compress(CONTENT), etag=blob.version, headers=squeezed)
    for act in (lambda: store.read(blob, 0, 10), lambda: store.stat(blob.uri)):
        with pytest.raises(TransferError, match=r"sends it compressed \(gzip\)"):
            act()


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, BlobAccessError, "answered 401.*it needs permission"),
        (403, BlobAccessError, "answered 403.*it needs permission"),
        (418, BlobAccessError, "answered 418.*check the address"),
        (408, BlobUnavailableError, "answered 408"),
        (429, BlobUnavailableError, "answered 429"),
        (500, BlobUnavailableError, "answered 500"),
        (503, BlobUnavailableError, "answered 503"),
        (204, TransferError, "answered 204"),
        (304, TransferError, "answered 304"),
    ],
)
def test_each_status_is_the_error_that_it_stands_for(
    server: WebServer, store: HttpsBlobStore, status: int, error: type[Exception], words: str
) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    for method in ("HEAD", "GET"):
        server.on(method, status=status, times=2)
    with pytest.raises(error, match=words) as raised:
        store.read(blob, 0, 10)
    assert str(raised.value).startswith(blob.uri)
    with pytest.raises(error, match=words):
        store.stat(blob.uri)


def test_a_server_says_when_to_come_back(server: WebServer, store: HttpsBlobStore) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    said = {"7": (7, 7), in_an_hour: (3500, 3601), MODIFIED: (0, 0)}
    for text, (least, most) in said.items():
        server.on("GET", status=503, headers={"Retry-After": text})
        with pytest.raises(BusyError) as raised:
            store.read(blob, 0, 10)
        assert least <= raised.value.retry_after_s <= most
    for text in ("soon", "-1", "9" * 400):
        server.on("GET", status=503, headers={"Retry-After": text})
        with pytest.raises(BlobUnavailableError) as unclear:
            store.read(blob, 0, 10)
        assert not isinstance(unclear.value, BusyError)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("body", [0, 1000])
def test_an_answer_that_breaks_off_is_worth_another_try(
    server: WebServer, store: HttpsBlobStore, body: int, end: bool, ranges: bool
) -> None:
    server.ranges = ranges
    blob = stat(store, f"{server.address}/a.bin")
    server.on("GET", body=body, end=end)
    with pytest.raises(BlobUnavailableError, match=r"ended early|was lost|ended after"):
        store.read(blob, 500, 5000)
    assert store.read(blob, 500, 5000) == CONTENT[500:5000]


def test_a_server_that_says_nothing_is_left_after_a_time(server: WebServer) -> None:
    store, released = HttpsBlobStore(read_timeout_s=0.1), threading.Event()
    blob = stat(store, f"{server.address}/a.bin")
    server.on("GET", body=10, hold=released)
    with pytest.raises(BlobUnavailableError, match="nothing more came in time"):
        store.read(blob, 0, 5000)
    released.set()


def test_a_server_that_is_not_there_is_unavailable(store: HttpsBlobStore) -> None:
    with WebServer() as server:
        address = server.address
    with pytest.raises(BlobUnavailableError, match="no connection could be made"):
        store.stat(f"{address}/a.bin")


def test_a_name_that_does_not_resolve_is_told(
    store: HttpsBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(BlobUnavailableError, match="host name is not known here"):
        store.stat("https://models.example/a.bin")


def test_a_certificate_that_is_trusted_is_needed(
    secure: WebServer,
    certificate: Certificate,
    store: HttpsBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"{secure.address}/a.bin"
    assert stat(trusting(certificate), uri).size == len(CONTENT)
    with pytest.raises(BlobAccessError, match=r"not trusted \(self-signed.*set SSL_CERT_FILE"):
        store.stat(uri)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
    assert stat(HttpsBlobStore(), uri).size == len(CONTENT)
    assert secure.count("HEAD") == 2


def test_a_certificate_for_another_name_is_refused(
    secure: WebServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebServer() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        with pytest.raises(BlobAccessError, match=r"not trusted \(Hostname mismatch"):
            trusting(certificate).stat(f"https://models.example:{secure.port}/a.bin")
    assert secure.seen == []


def test_a_proxy_is_used_where_the_environment_names_one(
    secure: WebServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The certificate is for localhost, which is never reached through a proxy.
    monkeypatch.setattr(
        "glm3sdk.adapters.storage.web_client._is_loopback", lambda host: host == "127.0.0.1"
    )
    with WebServer() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:word@127.0.0.1:{proxy.port}")
        for host in ("localhost", "127.0.0.1"):
            uri = f"https://{host}:{secure.port}/a.bin"
            store = trusting(certificate, headers={"Authorization": "Bearer token"})
            assert store.read(stat(store, uri), 5, 50) == CONTENT[5:50]
        [asked] = proxy.seen
        assert (asked.method, asked.path) == ("CONNECT", f"localhost:{secure.port}")
        assert asked.headers["proxy-authorization"] == "Basic bWU6d29yZA=="
        assert "authorization" not in asked.headers
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert stat(trusting(certificate), f"https://localhost:{secure.port}/a.bin")
        assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    "uri",
    [
        "http://models.example/a.bin",
        "http://127.0.0.1.example/a.bin",
        "http://[::2]/a.bin",
        "ftp://127.0.0.1/a.bin",
        "file:///etc/passwd",
        "https:///a.bin",
        "https://h:port/a.bin",
        "https://models.example/../a.bin",
        "https://models.example/x/%2e%2e/a.bin",
        "https://models.example/x/",
        "a.bin",
    ],
)
def test_an_address_that_is_not_one_or_not_safe_is_refused(store: HttpsBlobStore, uri: str) -> None:
    for act in (lambda: store.stat(uri), lambda: store.read(Blob(uri, 10), 0, 5)):
        with pytest.raises(BlobAccessError, match="pass"):
            act()


def test_redirects_are_followed(server: WebServer, store: HttpsBlobStore) -> None:
    server.pages["/b"] = Page(moved="/c?x=1")
    server.pages["/c"] = Page(moved=f"http://localhost:{server.port}/a.bin")
    blob = stat(store, f"{server.address}/b")
    assert (blob.uri, blob.size) == (f"{server.address}/b", len(CONTENT))
    assert store.read(blob, 9, 99) == CONTENT[9:99]
    server.pages["/loop"] = Page(moved="/loop")
    with pytest.raises(BlobAccessError, match="redirects more than 8 times"):
        store.stat(f"{server.address}/loop")


def test_a_redirect_to_where_it_is_not_encrypted_is_refused(
    server: WebServer, secure: WebServer, certificate: Certificate
) -> None:
    store = trusting(certificate)
    places = ["http://models.example/a", "file:///etc/passwd", "ftp://127.0.0.1/a"]
    for place in places:
        server.pages["/b"] = secure.pages["/b"] = Page(moved=place)
        for source in (server, secure):
            with pytest.raises(BlobAccessError, match="which is not https"):
                store.stat(f"{source.address}/b")
    secure.pages["/b"] = Page(moved=f"{server.address}/a.bin")
    with pytest.raises(BlobAccessError, match="which is not https"):
        store.stat(f"{secure.address}/b")
    server.pages["/b"] = Page(moved=f"{secure.address}/a.bin")
    assert stat(store, f"{server.address}/b").size == len(CONTENT)


def test_credentials_go_to_the_first_server_alone_and_into_no_message(
    server: WebServer, store: HttpsBlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="glm3sdk")
    with WebServer() as other:
        other.pages["/a.bin"] = Page(CONTENT)
        server.pages["/b"] = Page(moved=f"{other.address}/a.bin")
        uri = f"http://me:pass%20word@127.0.0.1:{server.port}/b"
        stat(store, uri)
        stat(HttpsBlobStore(headers={"Authorization": "Bearer s3cret"}), f"{server.address}/b")
        assert [s.headers["authorization"] for s in server.seen] == [
            "Basic bWU6cGFzcyB3b3Jk",
            "Bearer s3cret",
        ]
        assert all("authorization" not in seen.headers for seen in other.seen)
    server.on("HEAD", status=401)
    with pytest.raises(BlobAccessError) as raised:
        store.stat(f"{uri}?Signature=s3cret")
    for text in (str(raised.value), caplog.text):
        assert "pass%20word" not in text
        assert "s3cret" not in text


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://h/a?Signature=x#y", "https://h/a?...#y"),
        ("https://me:word@h/a@b", "https://h/a@b"),
        ("obs://bucket/what?", "obs://bucket/what?"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("/plain/me:x@path?q", "/plain/me:x@path?q"),
    ],
)
def test_an_address_is_shown_without_what_gives_access(uri: str, text: str) -> None:
    assert shown(uri) == text


def test_names_of_any_letters_are_asked_for(server: WebServer, store: HttpsBlobStore) -> None:
    server.pages["/名 字/权重 1.bin"] = Page(CONTENT)
    for path in ("/名 字/权重 1.bin", "/%E5%90%8D%20%E5%AD%97/%E6%9D%83%E9%87%8D%201.bin"):
        assert stat(store, server.address + path).size == len(CONTENT)


def test_a_web_server_is_only_read(store: HttpsBlobStore) -> None:
    uri = "https://me:word@models.example/a"
    for act in (store.list, store.delete, lambda uri: store.write(uri, b"x")):
        with pytest.raises(
            UnsupportedOptionError, match=r"https://models\.example/a: .*web server"
        ):
            act(uri)


@pytest.mark.parametrize("name", ["GLM3SDK_OFFLINE", "HF_HUB_OFFLINE"])
def test_nothing_is_asked_while_the_offline_switch_is_on(
    server: WebServer, store: HttpsBlobStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    uri = f"{server.address}/a.bin"
    for act in (lambda: store.stat(uri), lambda: store.read(Blob(uri, 10), 0, 5)):
        with pytest.raises(OfflineError, match=name):
            act()
    assert server.seen == []


def test_connections_are_kept_and_threads_share_the_store(
    server: WebServer, store: HttpsBlobStore
) -> None:
    blob = stat(store, f"{server.address}/a.bin")
    ranges = [(at, at + 100) for at in range(0, 4000, 100)]
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda part: store.read(blob, *part), ranges))
    assert parts == [CONTENT[start:stop] for start, stop in ranges]


def test_a_download_goes_through_all_kinds_of_faults(
    server: WebServer, store: HttpsBlobStore, tmp_path: Path
) -> None:
    server.on("GET", status=503, times=2)
    server.on("GET", body=50, times=2)
    server.on("GET", body=50, end=True)
    blob = stat(store, f"{server.address}/a.bin")
    done = download(
        store, blob, tmp_path / "a.bin", chunk_bytes=1000, streams=3, sleep=lambda _: None
    )
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert done.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert server.count("GET") == 11 + 5


def test_a_byte_that_flips_on_its_way_is_noticed(
    server: WebServer, store: HttpsBlobStore, tmp_path: Path
) -> None:
    blob, right = stat(store, f"{server.address}/a.bin"), hashlib.sha256(CONTENT).hexdigest()
    server.on("GET", skip=2, flip=7)
    with pytest.raises(TransferError, match=f"must be {right}; it was dropped"):
        download(store, blob, tmp_path / "a.bin", chunk_bytes=1000, sha256=right)
    assert list(tmp_path.iterdir()) == []
