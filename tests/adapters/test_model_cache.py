from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest

from glm3sdk.adapters.storage import cache_layout
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.model_cache import ModelCache, models_folder
from glm3sdk.errors import (
    BlobUnavailableError,
    CheckpointWriteError,
    InvalidCheckpointError,
    TransferError,
    UnknownNameError,
    UserError,
)
from glm3sdk.ports.blob_store import Blob
from glm3sdk.testing.memory_blobs import MemoryBlobStore

# Of a file system in memory a sync costs nothing; a test that makes many of them is quick there.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
TINY = Path(__file__).parents[2] / "glm3sdk" / "assets" / "tiny"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Counted(MemoryBlobStore):
    """Counts its reads, and tells digests where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.dead = False

    def put(self, name: str, content: bytes, *, told: bool = True) -> Blob:
        blob = self.write(f"memory://models/{name}", content)
        return blob if told else attrs.evolve(blob, sha256=None)

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        self.reads[blob.uri.rpartition("/")[2]] += 1
        if self.dead:
            raise BlobUnavailableError("the line is dead")
        return super().read(blob, start, stop)


@pytest.fixture
def store() -> Counted:
    return Counted()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def cache(root: Path) -> ModelCache:
    return ModelCache(root)


def pull(
    cache: ModelCache, store: Counted, key: str = "tiny", *, told: bool = True, **files: bytes
) -> Path:
    entries = {
        name: cache.fetch(store, store.put(name, content, told=told))
        for name, content in files.items()
    }
    return cache.publish(key, entries, source=f"memory://{key}", digests_known=told)


def places(root: Path) -> set[str]:
    """What is below the root, but the lock files."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "locks"
    }


def test_a_published_model_is_found_by_its_key(cache: ModelCache, store: Counted) -> None:
    assert cache.find("tiny") is None
    assert cache.list() == ()
    directory = pull(cache, store, a=b"aaaa", b=b"bb")
    found = cache.find("tiny")
    assert found is not None
    assert (found.key, found.path, found.source) == ("tiny", directory, "memory://tiny")
    assert (found.size, found.digests_known, found.revision) == (6, True, directory.name)
    assert cache.find("other") is None
    assert {name: (directory / name).read_bytes() for name in "ab"} == {"a": b"aaaa", "b": b"bb"}
    opened = LocalCheckpointStore().open(str(directory))
    opened.verify()
    assert opened.files == ("a", "b")


def test_a_model_of_the_cache_opens_like_any_directory(cache: ModelCache) -> None:
    store = LocalBlobStore()
    entries = {}
    for file in TINY.iterdir():
        blob = store.stat(str(file))
        assert blob is not None
        entries[file.name] = cache.fetch(store, blob)
    directory = cache.publish("tiny", entries, source=str(TINY), digests_known=False)
    model = HuggingFaceDirectory(directory)
    assert model.tensors == HuggingFaceDirectory(TINY).tensors
    assert model.tokenizer_path == directory / "tokenizer.model"
    assert LocalCheckpointStore().open(str(directory)).tensors == model.tensors


def test_a_file_is_kept_once_and_cannot_be_written_by_mistake(
    cache: ModelCache, store: Counted, root: Path
) -> None:
    one = pull(cache, store, "one", a=b"same", b=b"1")
    two = pull(cache, store, "two", a2=b"same", b=b"2")
    three = pull(cache, store, "three", a=b"same", b=b"1")
    assert one == three
    assert store.reads == {"a": 1, "b": 2}
    blob = root / "blobs" / sha256(b"same")
    for path in (blob, one / "a", two / "a2"):
        assert path.samefile(blob)
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [model.key for model in cache.list()] == ["one", "three", "two"]


@pytest.mark.parametrize("told", [True, False])
def test_what_is_there_is_not_fetched_again(cache: ModelCache, store: Counted, told: bool) -> None:
    blob, said = store.put("a", b"content", told=told), []
    for number in range(3):
        entry = ModelCache(cache._layout.root).fetch(store, blob, progress=said.append)
        assert entry == FileEntry(7, sha256(b"content"))
        assert said == [7] * (number + 1)
    assert store.reads == {"a": 1}
    if not told:
        pull(cache, store, told=False, a=b"content")  # written again: another version
        assert store.reads == {"a": 2}
        for _ in range(2):
            cache.fetch(store, attrs.evolve(blob, version=None))
        assert store.reads == {"a": 4}


@pytest.mark.parametrize("told", [True, False])
def test_a_fetch_goes_on_after_a_failure(cache: ModelCache, store: Counted, told: bool) -> None:
    blob = store.put("a", b"content", told=told)
    store.dead = True
    stop = iter([False, False, True])
    with pytest.raises(TransferError, match="was stopped"):
        cache.fetch(store, blob, should_stop=lambda: next(stop, True))
    store.dead = False
    assert cache.fetch(store, blob).sha256 == sha256(b"content")


def test_a_key_stands_for_what_was_published_last(cache: ModelCache, store: Counted) -> None:
    old = pull(cache, store, a=b"old")
    new = pull(cache, store, a=b"new")
    found = cache.find("tiny")
    assert found is not None
    assert found.path == new != old
    assert (old / "a").read_bytes() == b"old"  # somebody may be reading it
    assert len(cache.list()) == 1


def test_finding_a_model_is_using_it(cache: ModelCache, store: Counted, root: Path) -> None:
    pull(cache, store, a=b"a")
    [ref] = (root / "refs").iterdir()
    os.utime(ref, (1000, 1000))
    assert [model.last_used for model in cache.list()] == [1000]
    cache.find("tiny")
    assert [model.last_used > 1000 for model in cache.list()] == [True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "manifest.json").unlink(),
        lambda directory: (directory / "manifest.json").write_text("{"),
        lambda directory: (directory / "manifest.json").write_text('{"version": 1, "files": {}}'),
        lambda directory: (directory / "manifest.json").write_text(
            json.dumps({"version": 1, "files": {"../a": {"size": 1, "sha256": "0" * 64}}})
        ),
        lambda directory: (directory / "a").unlink(),
        lambda directory: os.truncate(directory / "a", 3),
        lambda directory: ((directory / "a").unlink(), (directory / "a").symlink_to("/etc/passwd")),
        lambda directory: (directory.rename(directory.with_name("x")), directory.symlink_to("x")),
        lambda directory: directory.rename(directory.parent.parent / "moved"),
    ],
)
def test_a_damaged_model_is_not_found_and_is_repaired_by_fetching_it_again(
    cache: ModelCache, store: Counted, damage: Callable[[Path], object]
) -> None:
    directory = pull(cache, store, a=b"long", b=b"b")
    damage(directory)
    assert cache.find("tiny") is None
    assert cache.list() == ()
    assert pull(cache, store, a=b"long", b=b"b") == directory
    LocalCheckpointStore().open(str(directory)).verify()
    assert cache.find("tiny").size == 5


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "../../../etc"},
        {"revision": "0" * 64},
        {"revision": 3},
        {"key": 3},
        {"source": None},
        {"digests_known": "yes"},
    ],
)
def test_a_ref_that_says_nonsense_is_no_ref(
    cache: ModelCache, store: Counted, root: Path, change: dict[str, object]
) -> None:
    pull(cache, store, a=b"a")
    [ref] = (root / "refs").iterdir()
    ref.write_text(json.dumps(json.loads(ref.read_text()) | change))
    assert cache.find("tiny") is None
    assert cache.list() == ()
    for text in (b"", b"[]", b"\xff", b"[" * 100_000):
        ref.write_bytes(text)
        assert cache.find("tiny") is None
    cache.prune()
    assert places(root) == set()


@pytest.mark.parametrize("name", ["../a", "/etc/a", ".hidden", "", "a/b", "manifest.json"])
def test_a_name_that_leads_elsewhere_is_refused(
    cache: ModelCache, store: Counted, root: Path, name: str
) -> None:
    entry = cache.fetch(store, store.put("a", b"a"))
    with pytest.raises(InvalidCheckpointError, match="cannot be a file of a model"):
        cache.publish("tiny", {name: entry}, source="memory://tiny", digests_known=True)
    assert places(root) == {f"blobs/{entry.sha256}"}


@pytest.mark.parametrize("digest", ["../../x", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(
    cache: ModelCache, store: Counted, root: Path, digest: str
) -> None:
    blob = store.put("a", b"a")
    if digest:
        with pytest.raises(TransferError, match="is no sha256"):
            cache.fetch(store, attrs.evolve(blob, sha256=digest))
    entry = FileEntry(1, digest)
    with pytest.raises(TransferError, match="is not there, the bytes of a; fetch them again"):
        cache.publish("tiny", {"a": entry}, source="memory://tiny", digests_known=True)
    assert places(root) == set()
    assert os.listdir(root.parent) == ["hub"]


def test_only_what_was_fetched_is_published(cache: ModelCache, store: Counted) -> None:
    entry = cache.fetch(store, store.put("a", b"a"))
    with pytest.raises(TransferError, match="fetch them again"):
        cache.publish(
            "tiny", {"a": FileEntry(2, entry.sha256)}, source="memory://tiny", digests_known=True
        )
    assert cache.find("tiny") is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_files_are_copied(
    cache: ModelCache, store: Counted, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    directory = pull(cache, store, a=b"content")
    assert (directory / "a").read_bytes() == b"content"
    assert (directory / "a").stat().st_nlink == 1
    assert cache.find("tiny") is not None
    cache.close()
    manifest = (directory / "manifest.json").stat().st_size
    assert cache.prune(["tiny"]).freed == 2 * 7 + manifest


def test_a_model_that_does_not_pass_its_check_is_never_seen(
    cache: ModelCache, store: Counted, root: Path
) -> None:
    entry, looked = cache.fetch(store, store.put("a", b"a")), []

    def check(directory: Path) -> None:
        looked.append((directory / "a").read_bytes())
        raise InvalidCheckpointError("not a model")

    publish = partial(
        cache.publish, "tiny", {"a": entry}, source="memory://tiny", digests_known=True
    )
    with pytest.raises(InvalidCheckpointError, match="not a model"):
        publish(check=check)
    assert looked == [b"a"]
    assert cache.find("tiny") is None
    assert places(root) == {f"blobs/{entry.sha256}"}
    publish(check=lambda directory: looked.append(directory.name.encode()))
    assert looked[1].startswith(b".")
    assert cache.find("tiny") is not None


@pytest.mark.parametrize("told", [True, False])
def test_what_is_missing_of_a_blob_is_told_without_asking_for_it(
    cache: ModelCache, store: Counted, told: bool
) -> None:
    blob = store.put("a", bytes(100_000), told=told)
    assert cache.missing(blob) == 100_000
    store.dead = True
    stop = iter([False, False, True])
    with pytest.raises(TransferError):
        cache.fetch(store, blob, should_stop=lambda: next(stop, True))
    assert cache.missing(blob) == 0  # the room for it is taken
    store.dead = False
    cache.fetch(store, blob)
    store.reads.clear()
    assert cache.missing(blob) == 0
    assert store.reads.total() == 0


def test_credentials_are_not_kept(cache: ModelCache, store: Counted, root: Path) -> None:
    key = "https://me:word@models.example/tiny?Signature=abc"
    blob = attrs.evolve(store.put("a", b"a", told=False), uri="memory://me:word@models/a")
    store._stored[blob.uri] = (blob, b"a")
    entry = cache.fetch(store, blob)
    cache.publish(key, {"a": entry}, source=key, digests_known=False)
    shown = "https://models.example/tiny?..."
    assert [(model.key, model.source) for model in cache.list()] == [(shown, shown)]
    assert cache.find(key) is not None
    for path in root.rglob("*"):
        assert path.is_dir() or not {b"word", b"abc"} & {*path.read_bytes().split(b'"')}
    assert all(b"word" not in path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert cache.prune([key]).in_use == ()
    assert cache.list() == ()


def test_pruning_removes_what_no_key_needs(cache: ModelCache, store: Counted, root: Path) -> None:
    one = pull(cache, store, "one", shared=b"shared" * 10, own=b"only in one")
    manifest = (one / "manifest.json").stat().st_size
    pull(cache, store, "two", shared=b"shared" * 10, own=b"2")
    cache.fetch(store, store.put("left", b"never published", told=False))
    before = places(root)
    assert cache.prune().freed == len(b"never published")
    assert places(root) < before
    assert {model.key for model in cache.list()} == {"one", "two"}
    pruned = cache.prune(["one"])
    assert (pruned.freed, pruned.in_use) == (len(b"only in one") + manifest, ())
    assert [model.key for model in cache.list()] == ["two"]
    assert cache.prune().freed == 0
    cache.prune(["two"])
    assert places(root) == set()
    assert os.listdir(root / "locks") == ["index"]


def test_a_model_that_two_keys_stand_for_stays_until_both_are_forgotten(
    cache: ModelCache, store: Counted
) -> None:
    directory = pull(cache, store, "one", a=b"a")
    pull(cache, store, "two", a=b"a")
    cache.prune(["one"])
    assert cache.find("one") is None
    assert cache.find("two").path == directory
    cache.prune(["two"])
    assert not directory.exists()


def test_an_unknown_key_is_told_before_anything_is_removed(
    cache: ModelCache, store: Counted, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match=r"no model in the cache 'x' \(known: none\)"):
        ModelCache(tmp_path / "nowhere").prune(["x"])
    assert not (tmp_path / "nowhere").exists()
    assert ModelCache(tmp_path / "nowhere").prune().freed == 0
    pull(cache, store, "glm3-6b", a=b"a")
    with pytest.raises(UnknownNameError, match=r"known: glm3-6b\); did you mean 'glm3-6b'"):
        cache.prune(["glm3-6", "glm3-6b"])
    assert cache.find("glm3-6b") is not None


def test_unfinished_files_are_pruned_and_files_of_others_are_not(
    cache: ModelCache, store: Counted, root: Path
) -> None:
    store.dead = True
    for told in (True, False):
        stop = iter([False, False, True])
        with pytest.raises(TransferError):
            cache.fetch(
                store,
                store.put("a", b"content", told=told),
                should_stop=lambda stop=stop: next(stop, True),
            )
    assert len(places(root)) == 4
    (root / "models" / "mine").mkdir()
    (root / "models" / "mine" / "notes.txt").write_text("keep this")
    assert cache.prune().freed >= 14
    assert places(root) == {"models/mine/notes.txt"}


def test_what_is_in_use_is_not_pruned(root: Path, store: Counted) -> None:
    with ModelCache(root) as mine:
        directory = pull(mine, store, "used", a=b"a")
        fetched = mine.fetch(store, store.put("later", b"to be published"))
        pull(ModelCache(root), store, "idle", b=b"b")  # and given back as it is forgotten
        pruned = ModelCache(root).prune(["used", "idle"])
        assert pruned.in_use == ("used",)
        assert [model.key for model in mine.list()] == ["used"]
        assert (directory / "a").read_bytes() == b"a"
        mine.publish("new", {"later": fetched}, source="memory://new", digests_known=True)
    with ModelCache(root) as reader:
        assert reader.find("new") is not None
        assert ModelCache(root).prune(["used", "new"]).in_use == ("new",)
    assert ModelCache(root).prune(["new"]).in_use == ()
    assert places(root) == set()


def test_a_cache_that_may_only_be_read_is_read(
    cache: ModelCache, store: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(cache, store, a=b"a")
    cache.close()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache_layout, "take_lock", refused)
    monkeypatch.setattr(os, "utime", refused)
    assert cache.find("tiny") is not None
    with pytest.raises(CheckpointWriteError, match=r"Read-only.*GLM3SDK_CACHE_DIR chooses another"):
        pull(cache, store, b=b"b")


def test_a_folder_that_cannot_be_made_is_named(
    cache: ModelCache, store: Counted, root: Path
) -> None:
    root.write_text("a file in its place")
    with pytest.raises(CheckpointWriteError, match="GLM3SDK_CACHE_DIR") as raised:
        pull(cache, store, a=b"a")
    assert str(root) in str(raised.value)
    assert cache.find("tiny") is None


def test_the_users_cache_is_where_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path))
    assert models_folder() == tmp_path / "hub"
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", "")
    with pytest.raises(UserError, match="set GLM3SDK_CACHE_DIR to a folder with room"):
        models_folder()


# One life of a cache: two models that share a file, one replaced, and pruning.
LIFE = """
import os, pathlib, sys
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.model_cache import ModelCache
from glm3sdk.testing.memory_blobs import MemoryBlobStore

CHANGES = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "chmod", "pwrite", "write")
STEPS = (*CHANGES, "open", "fsync", "fdatasync", "ftruncate", "posix_fallocate")
store = MemoryBlobStore()
told = store.write("memory://told", b"told")
untold = store.write("memory://untold", b"untold")
untold = type(untold)(untold.uri, untold.size, untold.version)

def pull(cache, key, **blobs):
    files = {name: cache.fetch(store, blob) for name, blob in blobs.items()}
    cache.publish(key, files, source="memory://", digests_known=False)

def live(root):
    with ModelCache(root) as cache:
        pull(cache, "one", a=told, b=untold)
        pull(cache, "two", a=told)
        pull(cache, "one", b=untold)
    ModelCache(root).prune(["two"])

def sound(root):
    found = [model.key for model in ModelCache(root).list()]
    for key in found:
        with ModelCache(root) as cache:
            LocalCheckpointStore().open(str(cache.find(key).path)).verify()
    return found

def wrapped(names, step, happen):
    count = 0
    def wrap(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                happen()
            return original(*args, **kwargs)
        return call
    for name in names:
        setattr(os, name, wrap(getattr(os, name)))
"""

KILLED_AT_EACH_STEP = (
    LIFE
    + """
outcomes = set()
for step in range(1, 2000):
    root = pathlib.Path(sys.argv[1], str(step))
    child = os.fork()
    if child == 0:
        wrapped(CHANGES, step, lambda: os._exit(9))
        live(root)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes.add(" ".join(sound(root)))
    live(root)
    assert sound(root) == ["one"]
    ModelCache(root).prune(["one"])
    left = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert left == {"locks/index"}, (step, left)
    if not killed:
        break
print(step, sorted(outcomes), sep="|")
"""
)


def test_a_process_killed_at_any_step_leaves_a_sound_cache() -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, "-c", KILLED_AT_EACH_STEP, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps, outcomes = done.stdout.strip().split("|")
    assert 60 < int(steps) < 1999
    assert outcomes == "['', 'one', 'one two']"


def test_a_step_that_fails_is_told_and_leaves_a_sound_cache(
    store: Counted,
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        script = (
            LIFE
            + """
from glm3sdk.errors import Glm3Error
real = {name: getattr(os, name) for name in STEPS}
for step in range(1, 2000):
    root = pathlib.Path(sys.argv[1], str(step))
    reached = []
    def fail():
        reached.append(step)
        raise OSError(28, "No space left on device")
    wrapped(STEPS, step, fail)
    try:
        live(root)
    except Glm3Error as exc:
        assert "No space left on device" in str(exc), exc
    for name, call in real.items():
        setattr(os, name, call)
    sound(root)
    live(root)
    assert sound(root) == ["one"]
    if not reached:
        break
print(step)
"""
        )
        command = [sys.executable, "-c", script, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) < 1999


BUSY = (
    LIFE
    + """
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    with ModelCache(pathlib.Path(sys.argv[1])) as cache:
        pull(cache, sys.argv[3], a=told, b=untold)
        found = cache.find(sys.argv[3])
        LocalCheckpointStore().open(str(found.path)).verify()
"""
)


def test_processes_pull_and_prune_at_once_and_none_loses_what_it_uses(root: Path) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        pulling = [
            subprocess.Popen(
                [sys.executable, "-c", BUSY, folder, "20", key],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for key in ("one", "one", "two")
        ]
        for process in pulling:
            assert process.stdout.readline() == "ready\n"
        pruned = 0
        while any(process.poll() is None for process in pulling):
            cache = ModelCache(Path(folder))
            pruned += cache.prune([model.key for model in cache.list()]).freed > 0
        for process in pulling:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        assert pruned > 0
        ModelCache(Path(folder)).prune(model.key for model in ModelCache(Path(folder)).list())
        assert places(Path(folder)) == set()
