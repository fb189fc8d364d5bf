"""The contract of blob stores: tests that every adapter and every fake passes."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glm3sdk.errors import BlobAccessError, BlobChangedError, TransferError
from glm3sdk.ports.blob_store import Blob, BlobStore

_BYTES = bytes(range(256)) * 40
_NAMES = ("名 字/权重 1.bin", "with space", "a+b=c&d", "percent%", "question?", "sharp#1", "~(x)'!")


class BlobStoreContract:
    """Derive a test class from it and give it the fixtures `store` and `root`."""

    @pytest.fixture
    def store(self) -> BlobStore:
        """The store."""
        raise NotImplementedError("override the `store` fixture")

    @pytest.fixture
    def root(self) -> str:
        """A URI below which there is nothing yet; it does not end in a slash."""
        raise NotImplementedError("override the `root` fixture")

    def test_bytes_come_back_as_they_were_written(self, store: BlobStore, root: str) -> None:
        written = store.write(f"{root}/a", _BYTES)
        assert (written.uri, written.size) == (f"{root}/a", len(_BYTES))
        assert store.stat(f"{root}/a") == written
        assert store.read(written, 0, len(_BYTES)) == _BYTES

    def test_a_file_comes_back_as_it_was_written(
        self, store: BlobStore, root: str, tmp_path: Path
    ) -> None:
        source = tmp_path / "source.bin"
        source.write_bytes(_BYTES * 100)
        written = store.write(f"{root}/a", source)
        assert store.stat(f"{root}/a") == written
        assert store.read(written, 0, written.size) == source.read_bytes()
        assert source.read_bytes() == _BYTES * 100

    def test_a_blob_may_be_empty(self, store: BlobStore, root: str, tmp_path: Path) -> None:
        source = tmp_path / "empty"
        source.touch()
        for uri, content in ((f"{root}/bytes", b""), (f"{root}/file", source)):
            written = store.write(uri, content)
            assert (written.size, store.read(written, 0, 0)) == (0, b"")
            assert store.stat(uri) == written
        assert [blob.size for blob in store.list(root)] == [0, 0]

    @pytest.mark.parametrize(
        ("start", "stop"), [(0, 1), (0, 10), (7, 300), (len(_BYTES) - 1, len(_BYTES)), (5, 5)]
    )
    def test_a_range_is_read_exactly(
        self, store: BlobStore, root: str, start: int, stop: int
    ) -> None:
        blob = store.write(f"{root}/a", _BYTES)
        assert store.read(blob, start, stop) == _BYTES[start:stop]

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, len(_BYTES) + 1), (len(_BYTES), len(_BYTES) + 1), (-1, 4), (4, 3), (99_999, 99_999)],
    )
    def test_a_range_outside_the_blob_is_refused(
        self, store: BlobStore, root: str, start: int, stop: int
    ) -> None:
        blob = store.write(f"{root}/a", _BYTES)
        with pytest.raises(TransferError, match=rf"{len(_BYTES)} bytes.*\[{start}, {stop}\)"):
            store.read(blob, start, stop)

    def test_there_is_nothing_where_nothing_was_written(self, store: BlobStore, root: str) -> None:
        assert store.stat(f"{root}/a") is None
        assert list(store.list(root)) == []
        store.write(f"{root}/a/b", _BYTES)
        for absent in ("a/b2", "b", "a/c"):
            assert store.stat(f"{root}/{absent}") is None
        assert store.stat(f"{root}/a") is None  # what only has something below it is no blob

    def test_a_digest_that_is_told_is_right(
        self, store: BlobStore, root: str, tmp_path: Path
    ) -> None:
        source = tmp_path / "source.bin"
        source.write_bytes(_BYTES)
        for content in (_BYTES, source):
            written = store.write(f"{root}/a", content)
            assert written.sha256 in (None, hashlib.sha256(_BYTES).hexdigest())

    def test_what_was_replaced_is_not_read(self, store: BlobStore, root: str) -> None:
        before = store.write(f"{root}/a", b"a" * 100)
        after = store.write(f"{root}/a", b"b" * 100)
        with pytest.raises(BlobChangedError, match="a"):
            store.read(before, 0, 100)
        assert before.version != after.version
        assert store.read(after, 0, 100) == b"b" * 100

    def test_what_was_removed_is_not_read(self, store: BlobStore, root: str) -> None:
        blob = store.write(f"{root}/a", _BYTES)
        store.delete(f"{root}/a")
        with pytest.raises(BlobChangedError, match="a"):
            store.read(blob, 0, 10)
        assert store.stat(f"{root}/a") is None
        assert list(store.list(root)) == []
        store.delete(f"{root}/a")

    def test_only_the_blob_of_that_name_is_removed(self, store: BlobStore, root: str) -> None:
        for name in ("a", "a-1", "b/a"):
            store.write(f"{root}/{name}", b"x")
        store.delete(f"{root}/a")
        store.delete(f"{root}/b")
        assert [blob.uri for blob in store.list(root)] == [f"{root}/a-1", f"{root}/b/a"]

    def test_a_list_is_sorted_and_of_what_lies_below(self, store: BlobStore, root: str) -> None:
        names = ("b", "a/x", "a/b/c", "a-1/x", "a0", "ab/x", "Z", "é", "a/.hidden")
        for number, name in enumerate(names):
            store.write(f"{root}/{name}", b"x" * number)
        listed = list(store.list(root))
        assert [blob.uri for blob in listed] == sorted(f"{root}/{name}" for name in names)
        assert [blob.size for blob in listed] == [names.index(_below(b, root)) for b in listed]
        below = [f"{root}/a/{name}" for name in (".hidden", "b/c", "x")]
        assert [blob.uri for blob in store.list(f"{root}/a")] == below
        assert [blob.uri for blob in store.list(f"{root}/a/")] == below
        assert list(store.list(f"{root}/b")) == []
        assert list(store.list(f"{root}/no such")) == []

    def test_what_is_listed_can_be_read(self, store: BlobStore, root: str) -> None:
        store.write(f"{root}/a/b", _BYTES)
        [blob] = store.list(root)
        stat = store.stat(blob.uri)
        assert stat is not None
        assert (stat.size, stat.version) == (blob.size, blob.version)
        assert store.read(blob, 3, 9) == _BYTES[3:9]

    @pytest.mark.parametrize("name", _NAMES)
    def test_a_name_may_have_any_letter(self, store: BlobStore, root: str, name: str) -> None:
        written = store.write(f"{root}/{name}", name.encode())
        assert store.read(written, 0, written.size) == name.encode()
        [listed] = store.list(root)
        assert store.stat(listed.uri) is not None
        assert store.read(listed, 0, listed.size) == name.encode()
        if "%" not in name:  # a URI may spell it %25
            assert _below(listed, root) == name
        store.delete(f"{root}/{name}")
        assert list(store.list(root)) == []

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "a/./b", "..", "a/..", "%2e%2E/x", "a/"])
    def test_a_name_that_climbs_or_names_nothing_is_refused(
        self, store: BlobStore, root: str, name: str
    ) -> None:
        for act in (store.stat, store.delete, lambda uri: store.write(uri, b"x")):
            with pytest.raises(BlobAccessError, match="pass"):
                act(f"{root}/{name}")
        assert list(store.list(root)) == []

    def test_a_blob_is_replaced_whole(self, store: BlobStore, root: str) -> None:
        store.write(f"{root}/a", b"long" * 1000)
        store.write(f"{root}/a", b"short")
        after = store.stat(f"{root}/a")
        assert after is not None
        assert (after.size, store.read(after, 0, 5)) == (5, b"short")
        assert len(list(store.list(root))) == 1

    def test_a_write_that_fails_leaves_what_was_there(
        self, store: BlobStore, root: str, tmp_path: Path
    ) -> None:
        before = store.write(f"{root}/a", _BYTES)
        for missing in (tmp_path / "no such file", tmp_path):
            for uri in (f"{root}/a", f"{root}/b"):
                with pytest.raises(TransferError, match="cannot read"):
                    store.write(uri, missing)
        assert store.read(before, 0, before.size) == _BYTES
        assert [blob.uri for blob in store.list(root)] == [f"{root}/a"]

    def test_a_reader_sees_one_version_while_others_write(
        self, store: BlobStore, root: str
    ) -> None:
        contents = {bytes([65 + n]) * (5000 + n) for n in range(4)}
        store.write(f"{root}/a", b"A" * 5000)
        written = threading.Event()

        def write() -> None:
            try:
                for content in sorted(contents) * 5:
                    store.write(f"{root}/a", content)
            finally:
                written.set()

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            while not written.is_set():
                assert _seen(store, f"{root}/a") in {*contents, None}
            writer.result()
        assert _seen(store, f"{root}/a") == max(contents)
        assert len(list(store.list(root))) == 1

    def test_threads_may_share_a_store(self, store: BlobStore, root: str) -> None:
        def use(number: int) -> bool:
            content = bytes([number]) * (1000 + number)
            blob = store.write(f"{root}/{number:02}", content)
            parts = [store.read(blob, at, at + 100) for at in range(0, 1000, 100)]
            return b"".join(parts) == content[:1000] and store.stat(blob.uri) == blob

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(use, range(24)))
        assert [blob.size for blob in store.list(root)] == [1000 + n for n in range(24)]


def _below(blob: Blob, root: str) -> str:
    return blob.uri.removeprefix(f"{root}/")


def _seen(store: BlobStore, uri: str) -> bytes | None:
    """What a reader gets: a whole blob, or None where it was replaced meanwhile."""
    blob = store.stat(uri)
    assert blob is not None
    try:
        return store.read(blob, 0, blob.size)
    except BlobChangedError:
        return None
