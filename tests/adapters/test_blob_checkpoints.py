from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from memory_storage import PassingBlobs
from safetensors.numpy import load_file

from glm3sdk.adapters.storage import blob_checkpoints
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.errors import (
    BlobAccessError,
    BlobUnavailableError,
    CheckpointWriteError,
    InvalidCheckpointError,
)
from glm3sdk.ports.blob_store import Blob
from glm3sdk.ports.checkpoint_store import CheckpointStore, CheckpointWriter, TensorSpec
from glm3sdk.testing import MemoryBlobStore

URI = "memory://bucket/runs/a"
VALUES = {
    "weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "bias": np.arange(3, dtype=np.float32),
}
CONFIG = b'{"num_layers": 2}'


class KilledError(BaseException):
    """The process ends here."""


class Storage:
    """Blobs in memory and a checkpoint store on them; `act` is told of each change and may raise.

    Attributes:
        slept: seconds that were waited.
    """

    def __init__(self, staging: Path) -> None:
        self.staging = staging
        self.blobs = PassingBlobs(MemoryBlobStore(), self._tell)
        self.places: list[str] = []
        self.act: Callable[[str], None] = lambda _: None
        self.slept: list[float] = []
        self.store = BlobCheckpointStore(self.blobs, staging=staging, sleep=self.slept.append)

    def _tell(self, place: str) -> None:
        self.places.append(place)
        self.act(place)

    def read(self, uri: str) -> bytes:
        blob = self.blobs.stat(uri)
        assert blob is not None
        return self.blobs.read(blob, 0, blob.size)

    def change(self, uri: str, change: Callable[[bytearray], object]) -> None:
        """Change the bytes of a blob, behind the store's back."""
        content = bytearray(self.read(uri))
        change(content)
        self.blobs.blobs.write(uri, bytes(content))

    def names(self) -> list[str]:
        return [blob.uri.removeprefix(f"{URI}/") for blob in self.blobs.list(URI)]

    @property
    def directory(self) -> str:
        """Where the files of the published checkpoint are."""
        return f"{URI}/{json.loads(self.read(f'{URI}/manifest.json'))['directory']}"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "staging")


def fill(writer: CheckpointWriter, factor: float = 1) -> None:
    specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in VALUES.items()}
    values = [(name, array * np.float32(factor)) for name, array in VALUES.items()]
    writer.add_tensors("model.safetensors", specs, values)
    writer.add_file("config.json", CONFIG)


def save(store: CheckpointStore, uri: str = URI, factor: float = 1) -> None:
    writer = store.create(uri)
    fill(writer, factor)
    writer.commit()


# --- Where things are ------------------------------------------------------------------------


def test_the_files_lie_in_one_directory_that_other_programs_can_read(
    storage: Storage, tmp_path: Path
) -> None:
    save(storage.store)
    manifest = json.loads(storage.read(f"{URI}/manifest.json"))
    directory = manifest["directory"]
    assert sorted(storage.names()) == [
        f"{directory}/config.json",
        f"{directory}/model.safetensors",
        "manifest.json",
    ]
    assert manifest["version"] == 1
    (tmp_path / "copy.safetensors").write_bytes(
        storage.read(f"{URI}/{directory}/model.safetensors")
    )
    loaded = load_file(tmp_path / "copy.safetensors")
    assert {name: array.tolist() for name, array in loaded.items()} == {
        name: array.tolist() for name, array in VALUES.items()
    }


def test_the_manifest_is_written_last_and_what_it_replaces_goes_after_it(storage: Storage) -> None:
    save(storage.store)
    old = storage.directory
    storage.places.clear()
    save(storage.store, factor=2)
    new = storage.directory
    assert new != old
    done = [place for place in storage.places if place.startswith("after")]
    assert done == [
        f"after writing {new}/model.safetensors",
        f"after writing {new}/config.json",
        f"after writing {URI}/manifest.json",
        f"after deleting {old}/config.json",
        f"after deleting {old}/model.safetensors",
    ]


def test_the_same_content_has_the_same_place(storage: Storage, tmp_path: Path) -> None:
    other = Storage(tmp_path / "other")
    save(storage.store)
    save(other.store)
    assert storage.directory == other.directory


def test_a_copy_of_the_whole_prefix_is_a_local_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "bucket"
    save(BlobCheckpointStore(LocalBlobStore(), staging=tmp_path / "staging"), str(root / "a"))
    shutil.copytree(root / "a", tmp_path / "copy")
    opened = LocalCheckpointStore().open(str(tmp_path / "copy"))
    opened.verify()
    assert opened.read("weight").tobytes() == VALUES["weight"].tobytes()
    assert opened.read_file("config.json") == CONFIG


def test_a_local_checkpoint_that_was_copied_to_a_store_is_opened_and_replaced(
    storage: Storage, tmp_path: Path
) -> None:
    save(LocalCheckpointStore(), str(tmp_path / "a"))
    for path in (tmp_path / "a").iterdir():
        storage.blobs.write(f"{URI}/{path.name}", path)
    opened = storage.store.open(URI)
    opened.verify()
    assert opened.read("bias").tobytes() == VALUES["bias"].tobytes()
    save(storage.store, factor=2)
    assert len(storage.names()) == 3
    storage.store.open(URI).verify()


# --- Killed, and told no ---------------------------------------------------------------------


def test_a_writer_killed_at_any_request_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    count = 0
    while True:
        storage = Storage(tmp_path / f"staging-{count}")
        save(storage.store)
        storage.places.clear()

        def die(place: str, storage: Storage = storage, left: int = count) -> None:
            if len(storage.places) > left:
                raise KilledError(place)

        storage.act = die
        try:
            save(storage.store, factor=2)
        except KilledError:
            pass
        else:
            break
        storage.act = lambda _: None
        opened = storage.store.open(URI)
        opened.verify()
        published = f"after writing {URI}/manifest.json" in storage.places
        assert opened.read("bias")[1] == (2 if published else 1)
        save(storage.store, factor=2)
        assert storage.store.open(URI).read("bias")[1] == 2
        storage.store.delete(URI)
        assert storage.names() == []
        count += 1
    assert count == 10


def test_files_that_arrived_are_not_sent_again(storage: Storage) -> None:
    def die(place: str) -> None:
        if place == f"before writing {URI}/manifest.json":
            raise KilledError

    storage.act = die
    with pytest.raises(KilledError):
        save(storage.store)
    storage.act = lambda _: None
    storage.places.clear()
    save(storage.store)
    assert [place for place in storage.places if "before" in place] == [
        f"before writing {URI}/manifest.json"
    ]


def test_a_file_of_another_content_in_its_place_is_sent_again(storage: Storage) -> None:
    save(storage.store)
    storage.change(f"{storage.directory}/config.json", bytearray.clear)
    save(storage.store)
    assert storage.store.open(URI).read_file("config.json") == CONFIG


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize(
    "error", [BlobUnavailableError("503 SlowDown"), BlobAccessError("the key expired")]
)
def test_a_store_that_refuses_a_file_leaves_the_old_checkpoint(
    storage: Storage, name: str, error: Exception
) -> None:
    save(storage.store)

    def refuse(place: str) -> None:
        if place.startswith("before writing") and place.endswith(name):
            raise error

    storage.act = refuse
    writer = storage.store.create(URI)
    fill(writer, 2)
    with pytest.raises(CheckpointWriteError, match=f"{URI} could not be published: {error}"):
        writer.commit()
    with pytest.raises(CheckpointWriteError, match="has ended"):
        writer.commit()
    assert bool(storage.slept) == isinstance(error, BlobUnavailableError)
    assert storage.store.open(URI).read("bias")[1] == 1
    assert list(storage.staging.iterdir()) == []


def test_a_store_that_is_busy_for_a_moment_is_asked_again(storage: Storage) -> None:
    left = {"writing": 2}

    def refuse(place: str) -> None:
        if "before" in place and left["writing"]:
            left["writing"] -= 1
            raise BlobUnavailableError("503 SlowDown")

    storage.act = refuse
    save(storage.store)
    assert len(storage.slept) == 2
    storage.store.open(URI).verify()


def test_a_file_that_did_not_arrive_as_it_was_sent_is_not_published(storage: Storage) -> None:
    def spoil(place: str) -> None:
        if place.startswith("after writing") and place.endswith("config.json"):
            storage.blobs.blobs.write(place.rsplit(" ", 1)[1], b"x" * len(CONFIG))

    storage.act = spoil
    with pytest.raises(CheckpointWriteError, match=r"config\.json is not what was written"):
        save(storage.store)
    with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
        storage.store.open(URI)


def test_what_cannot_be_removed_does_not_fail_a_checkpoint_that_is_published(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    save(storage.store)
    old = storage.directory

    def refuse(place: str) -> None:
        if "before deleting" in place:
            raise BlobAccessError("no permission to delete")

    storage.act = refuse
    save(storage.store, factor=2)
    assert f"{old}/config.json belongs to no checkpoint and stays: no permission" in caplog.text
    storage.store.open(URI).verify()


def test_a_parent_is_deleted_and_its_children_stay(storage: Storage) -> None:
    save(storage.store)
    save(storage.store, f"{URI}/child")
    storage.store.delete(URI)
    assert storage.store.list(URI) == (f"{URI}/child",)
    storage.store.open(f"{URI}/child").verify()


@pytest.mark.parametrize("uri", ["memory://b/../x", "memory://b/a/..", "memory://b/%2e%2e"])
def test_a_uri_that_climbs_is_refused(storage: Storage, uri: str) -> None:
    with pytest.raises(BlobAccessError, match="not a plain URI"):
        storage.store.create(uri)


# --- Read while it changes, and damaged ------------------------------------------------------


def test_a_reader_of_what_was_replaced_is_told_so_and_never_gets_a_mixture(
    storage: Storage,
) -> None:
    save(storage.store)
    opened = storage.store.open(URI)
    save(storage.store, factor=2)
    for read in (
        lambda: opened.read("weight"),
        lambda: opened.read_file("config.json"),
        opened.verify,
    ):
        with pytest.raises(InvalidCheckpointError, match=f"{URI} was replaced or removed since"):
            read()
    assert storage.store.open(URI).read("bias")[1] == 2


def test_a_checkpoint_that_is_replaced_while_it_is_opened_is_opened_anew(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(storage.store)
    parse, times = blob_checkpoints.parse_manifest, [1]

    def replacing(data: bytes, path: str | Path) -> object:
        if times:
            times.pop()
            save(storage.store, factor=2)
        return parse(data, path)

    monkeypatch.setattr(blob_checkpoints, "parse_manifest", replacing)
    assert storage.store.open(URI).read("bias")[1] == 2


def test_a_flipped_byte_is_found(storage: Storage) -> None:
    save(storage.store)

    def flip(content: bytearray) -> None:
        content[-1] ^= 1

    for name in ("model.safetensors", "config.json"):
        storage.change(f"{storage.directory}/{name}", flip)
    blobs = Forgetful(storage.blobs.blobs)  # or the sizes and digests of the store would tell
    opened = BlobCheckpointStore(blobs, staging=storage.staging).open(URI)
    with pytest.raises(InvalidCheckpointError, match=r"config\.json is not what was written"):
        opened.read_file("config.json")
    with pytest.raises(InvalidCheckpointError, match=r"config\.json is not what was written"):
        opened.verify()
    with pytest.raises(InvalidCheckpointError, match=r"config\.json is not what was written"):
        storage.store.open(URI)


class Forgetful:
    """A store that knows no digests."""

    def __init__(self, blobs: MemoryBlobStore) -> None:
        self._blobs = blobs

    def stat(self, uri: str) -> Blob | None:
        blob = self._blobs.stat(uri)
        return blob and Blob(blob.uri, blob.size, blob.version)

    def __getattr__(self, name: str) -> object:
        return getattr(self._blobs, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop(), r"safetensors has \d+ bytes and manifest.json says"),
        (bytearray.clear, "safetensors has 0 bytes and manifest.json says"),
    ],
)
def test_a_truncated_file_is_named(
    storage: Storage, change: Callable[[bytearray], object], words: str
) -> None:
    save(storage.store)
    storage.change(f"{storage.directory}/model.safetensors", change)
    with pytest.raises(InvalidCheckpointError, match=words):
        storage.store.open(URI)


def test_a_missing_file_is_named(storage: Storage) -> None:
    save(storage.store)
    storage.blobs.delete(f"{storage.directory}/config.json")
    with pytest.raises(InvalidCheckpointError, match=r"config\.json is missing"):
        storage.store.open(URI)


ENTRY = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"", "is not JSON"),
        (b"[" * 10_000, "is not JSON"),
        (b"\xff", "is not UTF-8"),
        ({"version": 2, "files": {}}, "is of version 2"),
        ({"version": 1}, "is not an object of a version"),
        ({"version": 1, "files": {}, "more": 1}, "is not an object of a version"),
        ({"version": 1, "files": {"../x": ENTRY}}, r"names '\.\./x', which is not a file"),
        ({"version": 1, "files": {"/etc/passwd": ENTRY}}, "names '/etc/passwd'"),
        ({"version": 1, "files": {"manifest.json": ENTRY}}, "names 'manifest.json'"),
        ({"version": 1, "files": {}, "directory": ".."}, r"names '\.\.', which is not a directory"),
        ({"version": 1, "files": {}, "directory": "a/b"}, "names 'a/b'"),
        ({"version": 1, "files": {}, "directory": ""}, "names ''"),
        ({"version": 1, "files": {}, "directory": 7}, "names 7"),
    ],
)
def test_a_manifest_that_is_none_or_leads_out_is_refused_and_can_be_replaced(
    storage: Storage, manifest: bytes | dict[str, object], words: str
) -> None:
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    storage.blobs.write(f"{URI}/manifest.json", data)
    with pytest.raises(InvalidCheckpointError, match=words) as raised:
        storage.store.open(URI)
    assert f"{URI}/manifest.json" in str(raised.value)
    save(storage.store)
    storage.store.open(URI).verify()


def test_a_manifest_of_any_length_is_not_read_into_memory(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_checkpoints, "MAX_BYTES", 1000)
    storage.blobs.write(f"{URI}/manifest.json", b" " * 100_000)
    with pytest.raises(InvalidCheckpointError, match="is not JSON"):
        storage.store.open(URI)
    assert storage.blobs.bytes_read == 1001


# --- Staging ---------------------------------------------------------------------------------


def test_writers_have_a_directory_each_and_leave_nothing(storage: Storage) -> None:
    first, second = storage.store.create(URI), storage.store.create(f"{URI}-b")
    assert len(list(storage.staging.iterdir())) == 2
    fill(first)
    fill(second)
    first.commit()
    second.abort()
    assert list(storage.staging.iterdir()) == []


_CHILD = """
import os, signal, sys
from pathlib import Path
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.testing import MemoryBlobStore
writer = BlobCheckpointStore(MemoryBlobStore(), staging=Path(sys.argv[1])).create("memory://a/b")
writer.add_file("config.json", b"{}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_when_the_next_one_writes(storage: Storage) -> None:
    subprocess.run([sys.executable, "-c", _CHILD, str(storage.staging)], check=False)
    assert len(list(storage.staging.iterdir())) == 1
    save(storage.store)
    assert list(storage.staging.iterdir()) == []


def test_a_full_staging_disk_says_how_to_choose_another(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = storage.store.create(URI)

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointWriteError, match=r"No space left.*GLM3SDK_CACHE_DIR"):
        fill(writer)
    monkeypatch.undo()
    assert storage.names() == []
    assert list(storage.staging.iterdir()) == []


def test_a_place_that_cannot_be_staged_in_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = BlobCheckpointStore(MemoryBlobStore(), staging=tmp_path / "file")
    with pytest.raises(CheckpointWriteError, match=r"checkpoints for memory are put together"):
        store.create(URI)
