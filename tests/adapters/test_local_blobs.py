from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glm3sdk.adapters.storage import local_blobs
from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.errors import BlobAccessError, BlobChangedError, TransferError


@pytest.fixture
def store() -> LocalBlobStore:
    return LocalBlobStore()


@pytest.mark.parametrize("uri", ["https://host/x", "file://host/x", "obs://bucket/x"])
def test_what_is_elsewhere_is_refused(store: LocalBlobStore, uri: str):
    with pytest.raises(BlobAccessError, match="is not local; pass a path or file:///PATH"):
        store.stat(uri)


@pytest.mark.parametrize("uri", ["file:///a%2F..%2Fb", "file:///a/%2e%2e/b", "/a/..", "a/../b"])
def test_a_place_that_climbs_is_refused(store: LocalBlobStore, uri: str):
    with pytest.raises(BlobAccessError, match="not a plain URI"):
        store.stat(uri)


@pytest.mark.parametrize("uri", ["file:///a%00b", "a\0b", "", "/", "file:///", ".."])
def test_what_names_nothing_is_refused(store: LocalBlobStore, uri: str):
    with pytest.raises(BlobAccessError, match="pass"):
        store.write(uri, b"x")


def test_a_uri_is_unquoted_and_a_path_is_not(store: LocalBlobStore, tmp_path: Path):
    store.write(f"file://{tmp_path}/a%20b%25", b"1")
    store.write(f"{tmp_path}/c%20d", b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b%", "c%20d"]
    assert [blob.uri for blob in store.list(f"file://localhost{tmp_path}")] == [
        f"file://localhost{tmp_path}/a b%25",
        f"file://localhost{tmp_path}/c%2520d",
    ]


def test_a_path_may_begin_above_where_we_are(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for uri in ("../x", "./y", "z"):
        assert store.stat(store.write(uri, b"1").uri) is not None
    assert [blob.uri for blob in store.list("..")] == ["../here/y", "../here/z", "../x"]
    assert [blob.uri for blob in store.list(".")] == ["./y", "./z"]


def test_links_to_files_are_followed_and_to_directories_not_listed(
    store: LocalBlobStore, tmp_path: Path
):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"content")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").symlink_to(tmp_path / "blobs" / "1")
    (tmp_path / "top" / "folder").symlink_to(tmp_path / "blobs")
    (tmp_path / "top" / "loop").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "top" / "pipe")
    [blob] = store.list(str(tmp_path / "top"))
    assert store.read(blob, 0, blob.size) == b"content"
    store.write(blob.uri, b"other")
    assert (tmp_path / "blobs" / "1").read_bytes() == b"content"
    assert store.stat(str(tmp_path / "top" / "pipe")) is None


def test_a_file_written_in_place_while_it_is_read_is_noticed(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blob = store.write(str(tmp_path / "a"), bytes(1000))
    read = os.pread

    def pread(file: int, count: int, at: int) -> bytes:
        content = read(file, count, at)
        (tmp_path / "a").write_bytes(b"other")
        return content

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(BlobChangedError, match="changed"):
        store.read(blob, 0, 1000)


def test_leftovers_of_a_killed_writer_are_never_listed_and_removed_by_the_next(
    store: LocalBlobStore, tmp_path: Path
):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from glm3sdk.adapters.storage.local_blobs import LocalBlobStore\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalBlobStore().write(sys.argv[1], b'new')"
    )
    store.write(str(tmp_path / "a"), b"old")
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], check=False)
    assert killed.returncode == -signal.SIGKILL
    [leftover] = [path for path in tmp_path.iterdir() if path.name != "a"]
    [blob] = store.list(str(tmp_path))
    assert store.read(blob, 0, blob.size) == b"old"
    with pytest.raises(BlobAccessError, match="name of this store's own"):
        store.write(str(leftover), b"x")
    store.write(str(tmp_path / "b"), b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_a_living_writer_is_at_is_not_removed(store: LocalBlobStore, tmp_path: Path):
    with local_blobs._unfinished(tmp_path) as (_, part):
        store.write(str(tmp_path / "a"), b"x")
        assert part.exists()
    assert not part.exists()


def test_a_full_disk_leaves_what_was_there(store: LocalBlobStore, tmp_path: Path):
    before = store.write(str(tmp_path / "a"), b"old")
    source = tmp_path / "source"
    source.write_bytes(bytes(3_000_000))
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from glm3sdk.errors import BlobAccessError\n"
        "from glm3sdk.adapters.storage.local_blobs import LocalBlobStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try: LocalBlobStore().write(sys.argv[1], Path(sys.argv[2]))\n"
        "except BlobAccessError as exc: sys.exit(str(exc))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a"), str(source)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert "cannot write" in run.stderr
    assert "raise the limit of a file's size" in run.stderr
    assert store.read(before, 0, 3) == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "source"]


def test_a_directory_in_the_place_is_not_replaced(store: LocalBlobStore, tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(BlobAccessError, match="cannot write"):
        store.write(str(tmp_path / "a"), b"x")
    store.write(str(tmp_path / "b"), b"x")
    with pytest.raises(BlobAccessError, match="pass another path"):
        store.write(str(tmp_path / "b" / "c"), b"x")
    assert store.stat(str(tmp_path / "b" / "c")) is None
    assert list(store.list(str(tmp_path / "b"))) == []


def test_a_source_that_cannot_be_read_makes_nothing(store: LocalBlobStore, tmp_path: Path):
    with pytest.raises(TransferError, match=r"cannot read .*none"):
        store.write(str(tmp_path / "new" / "a"), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
