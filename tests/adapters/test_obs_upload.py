from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from servers.obs_stores import (  # noqa: F401  # fixtures
    connection,
    double,
    settings,
    store,
    waits,
)
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double, Upload

from glm3sdk.adapters.storage import obs_upload
from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.errors import BlobAccessError, BlobUnavailableError, TransferError

URI = "obs://bucket/big"
CONTENT = hashlib.shake_256(b"seed").digest(6500)  # seven parts
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


def parts_sent(double: S3Double) -> list[int]:  # noqa: F811
    numbers = [seen.query.get("partNumber") for seen in double.seen if seen.method == "PUT"]
    return sorted(int(number) for number in numbers if number)


def published(double: S3Double) -> bytes | None:  # noqa: F811
    stored = double.objects.get(("bucket", "big"))
    if stored is not None:
        assert stored.metadata["sha256"] == hashlib.sha256(stored.content).hexdigest()
    return stored and stored.content


def test_each_part_bears_its_md5_and_the_whole_its_sha256(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    blob = store.write(URI, source)
    assert (blob.size, blob.sha256) == (6500, DIGEST)
    assert published(double) == CONTENT
    assert parts_sent(double) == [1, 2, 3, 4, 5, 6, 7]
    for seen in double.seen:
        if seen.method == "PUT":
            start = (int(seen.query["partNumber"]) - 1) * 1000
            md5 = hashlib.md5(CONTENT[start : start + 1000]).digest()
            assert base64.b64decode(seen.headers["content-md5"]) == md5
    assert not double.uploads


def test_a_small_file_goes_in_one_request(double: S3Double, store: ObsBlobStore):  # noqa: F811
    store.write(URI, b"x" * 1000)
    [seen] = double.seen
    assert (seen.method, seen.query) == ("PUT", {})
    assert base64.b64decode(seen.headers["content-md5"]) == hashlib.md5(b"x" * 1000).digest()


@pytest.mark.parametrize("size", [10, 6500])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 500},
        {"status": 400, "code": "BadDigest"},
        {"status": 400, "code": "RequestTimeout"},
        {"lose_reply": True},
        {"flip": 3},
    ],
    ids=str,
)
def test_a_request_that_fails_passingly_is_tried_again(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    waits: list[float],  # noqa: F811
    size: int,
    fault: dict[str, object],
):
    double.on("PUT", times=2, **fault)
    store.write(URI, CONTENT[:size])
    assert published(double) == CONTENT[:size]
    assert len(waits) == 2


def test_a_server_says_how_long_to_wait(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    waits: list[float],  # noqa: F811
):
    double.on("PUT", status=503, headers={"Retry-After": "7"})
    store.write(URI, b"x")
    assert 7 <= waits[0] < 8


def test_after_the_last_try_the_parts_stay_for_the_next_call(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.on("PUT", query="partNumber", skip=5, times=100, status=503)
    with pytest.raises(BlobUnavailableError, match="tried 6 times"):
        store.write(URI, source)
    assert published(double) is None
    [upload] = double.uploads.values()
    assert len(upload.parts) == 5
    double._faults.clear()
    double.seen.clear()
    double.page_size = 2
    store.write(URI, source)
    assert published(double) == CONTENT
    assert len(parts_sent(double)) == 2
    assert not double.uploads


def test_a_killed_upload_goes_on_where_it_stopped(double: S3Double, source: Path):  # noqa: F811
    reached, killed = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        killed.wait(30)

    double.on("PUT", query="partNumber", skip=3, before=hold, status=503)
    program = (
        "import sys; from pathlib import Path\n"
        "from glm3sdk.adapters.storage.obs import ObsBlobStore\n"
        "ObsBlobStore(part_size=1000, threads=1).write(sys.argv[1], Path(sys.argv[2]))"
    )
    environment = {
        **os.environ,
        "OBS_ENDPOINT": double.endpoint,
        "OBS_ACCESS_KEY_ID": ACCESS_KEY,
        "OBS_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    client = subprocess.Popen([sys.executable, "-c", program, URI, str(source)], env=environment)
    try:
        assert reached.wait(30)
    finally:
        client.kill()
        killed.set()
    assert client.wait(30) == -signal.SIGKILL
    assert published(double) is None
    double.seen.clear()
    with closing(ObsBlobStore(connection(double.endpoint), part_size=1000)) as elsewhere:
        blob = elsewhere.write(URI, source)
    assert parts_sent(double) == [4, 5, 6, 7]
    assert (published(double), blob.sha256) == (CONTENT, DIGEST)
    assert not double.uploads


def test_a_definite_failure_removes_the_parts(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.on("PUT", query="partNumber", skip=2, status=403)
    with pytest.raises(BlobAccessError, match="denies access"):
        store.write(URI, source)
    assert (published(double), double.uploads) == (None, {})


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(CONTENT[::-1]), lambda path: os.truncate(path, 3000)]
)
def test_a_file_that_changes_meanwhile_is_not_published(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
    change: Callable[[Path], object],
):
    before = source.stat()

    def act() -> None:
        change(source)
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))

    double.on("PUT", query="partNumber", skip=1, before=act)
    with pytest.raises(TransferError, match=r"source.bin changed while it was sent"):
        store.write(URI, source)
    assert (published(double), double.uploads) == (None, {})


def test_a_file_that_shrinks_before_it_is_read_is_an_error(
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    with obs_upload.opened(source) as content:
        os.truncate(source, 10)
        with pytest.raises(TransferError, match="changed"):
            content.read(0, 6500)
        with pytest.raises(TransferError, match="changed"):
            content.check_unchanged()


def test_who_may_not_list_uploads_may_still_write(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.on("GET", query="uploads", status=403)
    store.write(URI, source)
    assert published(double) == CONTENT


@pytest.mark.parametrize("same", [0, 2000])
def test_an_upload_of_other_content_is_not_gone_on_with(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
    same: int,
):
    """Not even where it begins alike: its sha256 would be published with our bytes."""
    other = CONTENT[:same] + bytes(6500 - same)
    double.on("PUT", query="partNumber", skip=2, times=100, status=503)
    with pytest.raises(BlobUnavailableError):
        store.write(URI, other)
    double._faults.clear()
    blob = store.write(URI, source)
    assert (published(double), blob.sha256) == (CONTENT, DIGEST)
    assert store.stat(URI) == blob


def test_an_upload_of_another_key_is_left_alone(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.uploads["theirs"] = Upload("bucket", "big-1", {})
    store.write(URI, source)
    assert list(double.uploads) == ["theirs"]


def test_an_upload_completed_without_an_answer_is_not_repeated(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.on("POST", query="uploadId", lose_reply=True)
    blob = store.write(URI, source)
    assert store.stat(URI) == blob
    assert parts_sent(double) == [1, 2, 3, 4, 5, 6, 7]


def test_parts_that_someone_removes_are_sent_again(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    double.on("PUT", query="partNumber", skip=4, before=double.uploads.clear)
    store.write(URI, source)
    assert published(double) == CONTENT
    double.on("PUT", query="partNumber", times=100, before=double.uploads.clear)
    with pytest.raises(TransferError, match="removed 3 times"):
        store.write(URI, CONTENT[::-1])
    assert published(double) == CONTENT


def test_parts_grow_where_ten_thousand_would_not_do(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(obs_upload, "_MOST_PARTS", 4)
    store.write(URI, source)
    assert parts_sent(double) == [1, 2, 3, 4]
    assert published(double) == CONTENT


def test_an_upload_of_which_another_process_was_faster_is_not_taken_for_lost(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    source: Path,
):
    """Both go on with the same parts; the other one completes first."""
    with closing(ObsBlobStore(connection(double.endpoint), part_size=1000)) as other:
        double.on("POST", query="uploadId", before=lambda: other.write(URI, source))
        blob = store.write(URI, source)
    assert (published(double), blob.sha256) == (CONTENT, DIGEST)
