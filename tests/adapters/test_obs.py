from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from servers.obs_stores import (  # noqa: F401  # fixtures
    connection,
    double,
    moto_bucket,
    settings,
    store,
    waits,
    without_settings,
)
from servers.s3_double import S3Double, StoredObject

from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.adapters.storage.transfer import download
from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    TransferError,
)
from glm3sdk.ports.blob_store import Blob

CONTENT = bytes(range(256)) * 20
URI = "obs://bucket/a"


@pytest.fixture
def blob(double: S3Double, store: ObsBlobStore) -> Blob:  # noqa: F811
    double.objects["bucket", "a"] = StoredObject(CONTENT)
    found = store.stat(URI)
    assert found is not None
    return found


@pytest.mark.parametrize("received", [0, 100, len(CONTENT) - 1])
def test_a_connection_that_drops_is_told_and_the_next_try_succeeds(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    blob: Blob,
    received: int,
):
    double.on("GET", body=received)
    with pytest.raises(BlobUnavailableError, match=r"connection to http.* failed for obs://"):
        store.read(blob, 0, blob.size)
    assert store.read(blob, 0, blob.size) == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_read_is_not_tried_again_here(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    blob: Blob,
    waits: list[float],  # noqa: F811
    status: int,
):
    double.on("GET", status=status, code="SlowDown")
    with pytest.raises(BlobUnavailableError, match=f"cannot serve {URI} now .*{status}"):
        store.read(blob, 0, 10)
    assert (double.count("GET"), waits) == (1, [])


def test_no_answer_at_all_is_unavailable(double: S3Double, store: ObsBlobStore, blob: Blob):  # noqa: F811
    for method, act in (
        ("GET", lambda: store.read(blob, 0, 10)),
        ("HEAD", lambda: store.stat(URI)),
        ("GET", lambda: list(store.list("obs://bucket"))),
        ("DELETE", lambda: store.delete(URI)),
    ):
        double.on(method, lose_reply=True)
        with pytest.raises(BlobUnavailableError, match="try again"):
            act()
    assert store.stat(URI) is None


def test_an_answer_that_does_not_go_on_ends_at_the_time_limit(double: S3Double, blob: Blob):  # noqa: F811
    release = threading.Event()
    double.on("GET", body=100, hold=release)
    hasty = connection(double.endpoint, read_timeout_s=0.2)
    with closing(ObsBlobStore(hasty)) as store:  # noqa: F811
        with pytest.raises(BlobUnavailableError, match="ReadTimeout"):
            store.read(blob, 0, blob.size)
        release.set()
        assert store.read(blob, 0, blob.size) == CONTENT


def test_an_object_replaced_between_two_ranges_is_noticed(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    blob: Blob,
):
    other = StoredObject(bytes(len(CONTENT)))
    double.on("GET", skip=1, before=lambda: double.objects.update({("bucket", "a"): other}))
    assert store.read(blob, 0, 10) == CONTENT[:10]
    with pytest.raises(BlobChangedError, match=f"{URI} was replaced"):
        store.read(blob, 10, 20)
    assert double.seen[-1].headers["if-match"] == f'"{blob.version}"'


def test_a_shorter_object_is_noticed_without_a_version(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    blob: Blob,
):
    double.objects["bucket", "a"] = StoredObject(CONTENT[:100])
    for start, stop in ((0, 10), (50, 200), (200, 300)):
        with pytest.raises(BlobChangedError):
            store.read(Blob(URI, blob.size), start, stop)


def test_a_server_that_ignores_ranges_is_refused(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
):
    double.on("GET", status=200)
    with pytest.raises(BlobAccessError, match="does not send ranges as asked"):
        store.read(Blob(URI, 5000), 0, 10)


def test_sixteen_threads_read_at_once(double: S3Double, store: ObsBlobStore, blob: Blob):  # noqa: F811
    together = threading.Barrier(16, timeout=20)
    double.on("GET", times=16, before=together.wait)
    read: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda at=at: read.update({at: store.read(blob, at, at + 320)}))
        for at in range(0, len(CONTENT), 320)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(read[at] for at in sorted(read)) == CONTENT


def test_a_byte_that_arrives_changed_is_found_by_the_digest(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    tmp_path: Path,
):
    blob = store.write(URI, CONTENT)
    assert store.stat(URI) == blob  # the digest is the store's: a download needs no other
    double.on("GET", flip=3)
    with pytest.raises(TransferError, match=r"did not arrive as it should be.*sha256"):
        download(store, blob, tmp_path / "a")
    assert list(tmp_path.glob("a")) == []
    download(store, blob, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_list_goes_over_pages_and_leaves_folders_out(double: S3Double, store: ObsBlobStore):  # noqa: F811
    double.page_size = 2
    keys = ["run/", "run/a", "run/a/", "run/b/c", "run/名 字", "runs/x"]
    for key in keys:
        double.objects["bucket", key] = StoredObject(key.encode())
    listed = [blob.uri for blob in store.list("obs://bucket/run")]
    assert listed == [f"obs://bucket/{key}" for key in ("run/a", "run/b/c", "run/名 字")]
    assert double.count("GET", "continuation-token") == 2
    assert len(list(store.list("s3://bucket"))) == 4


def test_a_listed_key_that_climbs_is_refused(double: S3Double, store: ObsBlobStore):  # noqa: F811
    double.objects["bucket", "run/../../etc/passwd"] = StoredObject(b"")
    with pytest.raises(BlobAccessError, match="not a plain URI"):
        list(store.list("obs://bucket/run"))


def test_what_is_missing_costs_no_error_but_a_missing_bucket_does(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
):
    assert store.stat(URI) is None
    for act in (
        store.stat,
        store.delete,
        lambda uri: list(store.list(uri)),
        lambda uri: store.write(uri, b"x"),
        lambda uri: store.write(uri, bytes(5000)),
        lambda uri: store.read(Blob(uri, 5, "1"), 0, 5),
    ):
        with pytest.raises(BlobAccessError, match=r"no such bucket.*check its name"):
            act("obs://absent/key")
    with pytest.raises(BlobAccessError, match="no such bucket"):
        list(store.list("obs://absent"))


@pytest.mark.parametrize(
    "uri",
    ["obs://bucket", "obs://bucket/", "obs:///key", "obs://UP_/../x", "https://bucket/key", ""],
)
def test_what_names_no_object_is_refused(store: ObsBlobStore, uri: str):  # noqa: F811
    with pytest.raises(BlobAccessError, match="pass"):
        store.stat(uri)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with without_settings(), moto_bucket() as endpoint:
        yield endpoint


class TestOnMoto:
    """What our own double could get wrong together with the store."""

    def test_a_file_in_parts(self, moto: str, tmp_path: Path):
        content = hashlib.shake_256(b"seed").digest((11 << 20) + 3)
        source = tmp_path / "source.bin"
        source.write_bytes(content)
        theirs = connection(moto)
        with closing(ObsBlobStore(theirs, part_size=5 << 20)) as store:  # noqa: F811
            blob = store.write("s3://bucket/big", source)
            assert store.stat(blob.uri) == blob
            assert store.read(blob, 5 << 20, 11 << 20) == content[5 << 20 : 11 << 20]
        with closing(theirs.client(blob.uri)) as client:
            answer = client.get_object(Bucket="bucket", Key="big")
            assert answer["Body"].read() == content
            assert answer["Metadata"] == {"sha256": hashlib.sha256(content).hexdigest()}

    def test_parts_that_are_there_are_not_sent_again(
        self, moto: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level("INFO", "werkzeug")
        content = hashlib.shake_256(b"other seed").digest((10 << 20) + 3)
        source = tmp_path / "source.bin"
        source.write_bytes(content)
        theirs = connection(moto)
        with (
            closing(ObsBlobStore(theirs, part_size=5 << 20)) as store,  # noqa: F811
            closing(theirs.client("s3://bucket/big")) as client,
        ):
            there = {"Bucket": "bucket", "Key": "half"}
            digest = hashlib.sha256(content).hexdigest()
            begun = client.create_multipart_upload(**there, Metadata={"sha256": digest})
            part = content[: 5 << 20]
            which = {"PartNumber": 1, "UploadId": begun["UploadId"]}
            client.upload_part(**there, **which, Body=part)
            blob = store.write("s3://bucket/half", source)
            parts = [re.search(r"PUT \S*partNumber=(\d)", line) for line in caplog.messages]
            assert sorted(match[1] for match in parts if match) == ["1", "2", "3"]
            assert store.read(blob, 0, blob.size) == content
            assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
