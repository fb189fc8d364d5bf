from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.web_server import Page, WebServer

from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.retries import BusyError, retried
from glm3sdk.adapters.storage.transfer import download
from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    CheckpointWriteError,
    TransferError,
)
from glm3sdk.ports.blob_store import Blob
from glm3sdk.testing.memory_blobs import MemoryBlobStore

URI = "memory://models/a.bin"
CHUNK = 100
CONTENT = bytes(n * n % 251 for n in range(1042))  # 10 chunks and a short one
# Of a file system in memory a sync costs nothing; a test that makes many of them is quick there.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Faulty(MemoryBlobStore):
    """Counts its reads by chunk, and asks `fault` before each, which may raise or change it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.fault: Callable[[int, bytes], bytes] = lambda chunk, data: data

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        chunk = start // CHUNK
        self.reads[chunk] += 1
        return self.fault(chunk, super().read(blob, start, stop))


def put(store: MemoryBlobStore, content: bytes = CONTENT, **changes: object) -> Blob:
    """A blob whose digest the store does not tell, unless it is said to."""
    return attrs.evolve(store.write(URI, content), **{"sha256": None, **changes})


def fetch(store: MemoryBlobStore, blob: Blob, path: Path, **more: object) -> FileEntry:
    given = {"chunk_bytes": CHUNK, "streams": 3, "sleep": lambda _: None, **more}
    return download(store, blob, path, **given)  # type: ignore[arg-type]  # checked by its tests


def failing(chunks: set[int], error: BaseException | None = None) -> Callable[[int, bytes], bytes]:
    def fault(chunk: int, data: bytes) -> bytes:
        if chunk in chunks:
            raise error or BlobUnavailableError("the line is dead")
        return data

    return fault


def recorded(path: Path) -> set[int]:
    """The chunks that the journal has, read as its documentation says."""
    journal = path.with_name(f"{path.name}.incomplete.journal")
    lines = journal.read_text().splitlines() if journal.exists() else []
    return {int(line.split()[0]) for line in lines[1:]}


@pytest.fixture
def store() -> Faulty:
    return Faulty()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "a.bin"


def only(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1042])
@pytest.mark.parametrize("streams", [1, 3, 20])
@pytest.mark.parametrize("told", ["by the store", "by the caller", "by nobody"])
def test_a_blob_arrives_whole(
    store: Faulty, path: Path, size: int, streams: int, told: str
) -> None:
    content, digest = CONTENT[:size], hashlib.sha256(CONTENT[:size]).hexdigest()
    blob = put(store, content, sha256=digest if told == "by the store" else None)
    said: list[int] = []
    done = fetch(
        store,
        blob,
        path,
        streams=streams,
        progress=said.append,
        sha256=digest if told == "by the caller" else None,
    )
    assert done == FileEntry(size, digest)
    assert path.read_bytes() == content
    assert only(path)
    assert sum(said) == size
    assert set(store.reads.values()) <= {1}


def test_a_file_with_the_right_digest_is_not_fetched_again_and_any_other_is_replaced(
    store: Faulty, path: Path
) -> None:
    blob, said = put(store), []
    fetch(store, blob, path, sha256=DIGEST)
    store.reads.clear()
    fetch(store, blob, path, sha256=DIGEST, progress=said.append)
    assert (store.reads, said) == (Counter(), [len(CONTENT)])
    for wrong in (CONTENT[:-1], CONTENT[:-1] + b"!"):
        path.write_bytes(wrong)
        fetch(store, blob, path, sha256=DIGEST)
        assert path.read_bytes() == CONTENT
    store.reads.clear()
    fetch(store, blob, path)  # nobody knows what it should be
    assert store.reads.total() == 11


@pytest.mark.parametrize("known", [True, False])
def test_what_arrived_before_a_failure_is_not_fetched_again(
    store: Faulty, path: Path, known: bool
) -> None:
    blob = put(store)
    sha256 = DIGEST if known else None
    store.fault = failing({4})
    with pytest.raises(BlobUnavailableError, match="the line is dead") as raised:
        fetch(store, blob, path, streams=1, sha256=sha256)
    assert "(tried 6 times)" in str(raised.value)
    assert "400 of 1042 bytes are kept, and the next try goes on" in str(raised.value)
    assert not path.exists()
    assert recorded(path) == {0, 1, 2, 3}
    store.fault, said = failing(set()), []
    store.reads.clear()
    assert fetch(store, blob, path, sha256=sha256, progress=said.append).sha256 == DIGEST
    assert path.read_bytes() == CONTENT
    assert sorted(store.reads) == [4, 5, 6, 7, 8, 9, 10]
    assert (said[0], sum(said)) == (400, 1042)
    assert only(path)


def test_a_chunk_is_tried_again_and_other_errors_pass(store: Faulty, path: Path) -> None:
    blob, waits = put(store), []
    left = [BlobUnavailableError("busy"), ConnectionResetError("reset"), TimeoutError("slow")]

    def stumbling(chunk: int, data: bytes) -> bytes:
        if chunk == 5 and left:
            raise left.pop()
        return data[:-1] if chunk == 6 and store.reads[6] < 3 else data

    store.fault = stumbling
    fetch(store, blob, path, sleep=waits.append)
    assert path.read_bytes() == CONTENT
    assert (store.reads[5], store.reads[6], len(waits)) == (4, 3, 5)
    for error in (BlobAccessError("no permission"), TransferError("no such range")):
        store.fault = failing({5}, error)
        store.reads.clear()
        with pytest.raises(type(error), match=str(error)):
            fetch(store, blob, path)
        assert store.reads[5] == 1


@pytest.mark.parametrize("removed", [True, False])
def test_a_blob_that_is_replaced_meanwhile_is_dropped(
    store: Faulty, path: Path, removed: bool
) -> None:
    blob = put(store)

    def replaced(chunk: int, data: bytes) -> bytes:
        if chunk == 3:
            store.delete(URI) if removed else store.write(URI, CONTENT[::-1])
        return data

    store.fault = replaced
    with pytest.raises(BlobChangedError, match="was replaced or removed"):
        fetch(store, blob, path, streams=1)
    assert os.listdir(path.parent) == []
    store.fault = failing(set())
    fetch(store, put(store, CONTENT[::-1]), path)
    assert path.read_bytes() == CONTENT[::-1]


def test_bytes_that_are_not_the_expected_ones_are_dropped(store: Faulty, path: Path) -> None:
    blob = put(store)
    flipped = bytearray(CONTENT)
    flipped[777] ^= 1
    wrong = hashlib.sha256(flipped).hexdigest()
    store.fault = lambda chunk, data: bytes(flipped[700:800]) if chunk == 7 else data
    with pytest.raises(TransferError, match="did not arrive as it should") as raised:
        fetch(store, blob, path, sha256=DIGEST)
    assert f"its sha256 is {wrong} and must be {DIGEST}" in str(raised.value)
    assert os.listdir(path.parent) == []
    store.fault = failing(set())
    assert fetch(store, blob, path, sha256=DIGEST).sha256 == DIGEST


def test_a_store_that_promises_another_digest_is_not_asked_for_bytes(
    store: Faulty, path: Path
) -> None:
    blob = put(store, sha256=DIGEST)
    with pytest.raises(TransferError, match=f"says sha256 {DIGEST} and it must be {'0' * 64}"):
        fetch(store, blob, path, sha256="0" * 64)
    assert not path.parent.exists()
    assert store.reads.total() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"content": CONTENT[::-1]},
        {"content": CONTENT[:-1]},
        {"chunk_bytes": 50},
        {"sha256": DIGEST},
        {"uri": "memory://models/b.bin"},
        {"version": None},
    ],
)
def test_a_journal_of_another_download_counts_for_nothing(
    store: Faulty, path: Path, change: dict[str, object]
) -> None:
    store.fault = failing({6})
    with pytest.raises(BlobUnavailableError):
        fetch(store, put(store), path)
    store.fault = failing(set())
    store.reads.clear()
    content = change.get("content", CONTENT)
    blob = attrs.evolve(
        store.write(str(change.get("uri", URI)), content),  # type: ignore[arg-type]
        sha256=None,
    )
    blob = attrs.evolve(blob, **{k: v for k, v in change.items() if k == "version"})
    more = {k: v for k, v in change.items() if k in ("sha256", "chunk_bytes")}
    fetch(store, blob, path, **more)
    assert path.read_bytes() == content
    assert store.reads.total() == -(-len(content) // more.get("chunk_bytes", CHUNK))


def test_without_a_version_only_a_digest_lets_a_download_go_on(store: Faulty, path: Path) -> None:
    blob = put(store, version=None)
    for sha256, fetched in ((None, 11), (DIGEST, 5)):
        store.fault = failing({6})
        with pytest.raises(BlobUnavailableError):
            fetch(store, blob, path, sha256=sha256, streams=1)
        store.fault = failing(set())
        store.reads.clear()
        fetch(store, blob, path, sha256=sha256)
        assert store.reads.total() == fetched
        path.unlink()


@pytest.fixture
def half_done(store: Faulty, path: Path) -> Blob:
    """A blob of which chunks 0 to 5 are there."""
    blob = put(store)
    store.fault = failing({6})
    with pytest.raises(BlobUnavailableError):
        fetch(store, blob, path, streams=1)
    assert recorded(path) == {0, 1, 2, 3, 4, 5}
    store.fault = failing(set())
    store.reads.clear()
    return blob


@pytest.mark.parametrize("lost", [1, 5, 11, 12, 300, 10_000])
def test_of_a_torn_journal_the_whole_lines_count(
    store: Faulty, path: Path, half_done: Blob, lost: int
) -> None:
    journal = path.with_name("a.bin.incomplete.journal")
    content = journal.read_bytes()
    journal.write_bytes(content[: max(len(content) - lost, 0)])
    whole = max(content[:-lost].count(b"\n") - 1, 0)
    store.fault = failing({10})
    with pytest.raises(BlobUnavailableError):
        fetch(store, half_done, path, streams=1)
    assert sorted(store.reads) == list(range(whole, 11))
    # What is appended to a torn line is not lost with it.
    assert recorded(path) == set(range(10))
    store.fault = failing(set())
    fetch(store, half_done, path)
    assert path.read_bytes() == CONTENT


@given(st.data())
@settings(max_examples=60)
def test_whatever_happens_to_a_journal_the_file_is_right(data: st.DataObject) -> None:
    store = Faulty()
    blob = put(store)
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "a.bin")
        store.fault = failing({6})
        with pytest.raises(BlobUnavailableError):
            fetch(store, blob, path)
        journal = Path(folder, "a.bin.incomplete.journal")
        content = bytearray(journal.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "drop a line", "swap lines"]))
        if how == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=30))
        else:
            lines = content.splitlines(keepends=True)
            if how == "drop a line":
                del lines[data.draw(st.integers(0, len(lines) - 1))]
            else:
                lines = data.draw(st.permutations(lines))
            content = b"".join(lines)
        journal.write_bytes(content)
        store.fault = failing(set())
        fetch(store, blob, path)
        assert path.read_bytes() == CONTENT


def test_an_unfinished_file_of_another_length_counts_for_nothing(
    store: Faulty, path: Path, half_done: Blob
) -> None:
    os.truncate(path.with_name("a.bin.incomplete"), 1000)
    assert fetch(store, half_done, path).sha256 == DIGEST
    assert store.reads.total() == 11


def test_an_unfinished_file_that_was_changed_is_noticed_where_the_digest_is_known(
    store: Faulty, path: Path
) -> None:
    blob = put(store, sha256=DIGEST)
    store.fault = failing({6})
    with pytest.raises(BlobUnavailableError):
        fetch(store, blob, path, streams=1)
    with path.with_name("a.bin.incomplete").open("r+b") as file:
        file.write(b"!")
    store.fault = failing(set())
    with pytest.raises(TransferError, match="must be"):
        fetch(store, blob, path)
    assert fetch(store, blob, path).sha256 == DIGEST


def test_a_directory_in_its_place_is_told_before_anything_is_fetched(
    store: Faulty, path: Path
) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CheckpointWriteError, match="it is a directory; pass a file's path"):
        fetch(store, put(store), path)
    assert store.reads.total() == 0
    assert only(path)


@pytest.mark.parametrize("name", ["a.bin.incomplete", "a.bin.incomplete.journal"])
def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(
    store: Faulty, path: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path.parent.mkdir()
    (path.parent / name).symlink_to(victim)
    with pytest.raises(CheckpointWriteError, match="symbolic links"):
        fetch(store, put(store), path)
    assert victim.read_bytes() == b"mine"


@attrs.frozen
class Interruption:
    """One try: which chunks fail and how, and after how many the caller gives up."""

    fails: frozenset[int]
    error: type[BaseException]
    stops_after: int | None
    streams: int


INTERRUPTING = (
    BlobUnavailableError,
    BlobAccessError,
    TransferError,
    MemoryError,
    KeyboardInterrupt,
)
INTERRUPTIONS = st.builds(
    Interruption,
    fails=st.frozensets(st.integers(0, 10), max_size=4),
    error=st.sampled_from([BlobUnavailableError, BlobAccessError, MemoryError, KeyboardInterrupt]),
    stops_after=st.none() | st.integers(0, 11),
    streams=st.integers(1, 4),
)


@given(st.lists(INTERRUPTIONS, max_size=5), st.booleans())
@settings(max_examples=80)
def test_after_any_interruptions_the_bytes_are_right_and_none_recorded_is_fetched_again(
    interruptions: list[Interruption], known: bool
) -> None:
    store = Faulty()
    blob = put(store, sha256=DIGEST if known else None)
    last = Interruption(frozenset(), BlobAccessError, None, 3)
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "a.bin")
        for interruption in (*interruptions, last):
            store.fault = failing(set(interruption.fails), interruption.error("interrupted"))
            store.reads.clear()
            told: list[int] = []
            limit = interruption.stops_after
            there, threads = recorded(path), threading.active_count()
            try:
                fetch(
                    store,
                    blob,
                    path,
                    streams=interruption.streams,
                    attempts=2,
                    progress=told.append,
                    should_stop=lambda told=told, limit=limit: limit == len(told),
                )
            except INTERRUPTING as exc:
                assert "interrupted" in str(exc) or "was stopped" in str(exc)  # noqa: PT017
                assert not path.exists()
                assert there <= recorded(path)
            assert threading.active_count() == threads
            assert not there & store.reads.keys()
            if path.exists():
                break
        assert path.read_bytes() == CONTENT
        assert os.listdir(folder) == ["a.bin"]


def test_an_interrupt_ends_the_threads_and_keeps_what_is_there(store: Faulty, path: Path) -> None:
    blob, threads = put(store), threading.active_count()
    files = os.listdir("/proc/self/fd")

    def interrupted(done: int) -> None:
        if store.reads.total() > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(store, blob, path, progress=interrupted)
    assert threading.active_count() == threads
    assert os.listdir("/proc/self/fd") == files
    assert not path.exists()
    there = recorded(path)
    assert there == set(store.reads)
    store.reads.clear()
    fetch(store, blob, path)
    assert not there & store.reads.keys()


def test_a_wait_before_another_try_ends_with_the_download(store: Faulty, path: Path) -> None:
    # The wait is the real one here: a minute, were it not for the failure of the other thread.
    both = threading.Barrier(2)

    def fault(chunk: int, data: bytes) -> bytes:
        both.wait()
        if chunk == 0:
            raise BusyError("come back later", retry_after_s=60)
        raise BlobAccessError("no permission")

    store.fault = fault
    with pytest.raises(BlobAccessError, match="no permission"):
        fetch(store, put(store), path, streams=2, sleep=None)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    store: Faulty, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(path.parent.parent)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    blob = Blob(URI, 5_000_000_000, "1")
    with pytest.raises(CheckpointWriteError, match=r"has 2\.00 GB free and a\.bin takes 5\.00 GB"):
        fetch(store, blob, path)
    assert path.with_name("a.bin.incomplete").stat().st_size == 0


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "write", "fsync", "rename"])
def test_a_disk_that_is_full_midway_is_named_and_the_next_call_goes_on(
    store: Faulty, path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    blob, left = put(store), {"pwrite": 3, "write": 1, "fsync": 1}.get(call, 0)
    real = getattr(os, call)

    def full(*args: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, os.strerror(28))
        return real(*args)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointWriteError, match="No space left on device; free some space"):
        fetch(store, blob, path, streams=1)
    monkeypatch.undo()
    assert not path.exists()
    there = recorded(path)
    store.reads.clear()
    assert fetch(store, blob, path).sha256 == DIGEST
    assert not there & store.reads.keys()
    assert only(path)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from glm3sdk.adapters.storage.transfer import download
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.testing.memory_blobs import MemoryBlobStore

store, path = MemoryBlobStore(), Path(sys.argv[1])
blob = store.write("memory://a", bytes(1_000_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
try:
    download(store, blob, path)
except CheckpointWriteError as exc:
    print(exc)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
print(download(store, blob, path).size)
"""
    done = run(script, tmp_path / "a.bin")
    told, size = done.stdout.splitlines() or (done.stderr, "")
    assert told.endswith(
        "File too large; raise the limit of a file's size (ulimit -f) or write more, smaller files"
    )
    assert size == "1000000"


# Forks a child for each step that dies there as if by kill -9; no threads are left by then.
KILLED_AT_EACH_STEP = """
import os, pathlib, sys
from collections import Counter
from glm3sdk.adapters.storage import transfer
from glm3sdk.testing.memory_blobs import MemoryBlobStore

transfer._SYNCED_BYTES = 1
names = ("mkdir", "open", "pwrite", "fdatasync", "fsync", "write", "ftruncate", "posix_fallocate",
         "rename", "unlink")
reads = Counter()

class Counted(MemoryBlobStore):
    def read(self, blob, start, stop):
        reads[start // 100] += 1
        return super().read(blob, start, stop)

store, content = Counted(), os.urandom(550)
known = sys.argv[2] == "known"
blob = store.write("memory://a", content)
blob = type(blob)(blob.uri, blob.size, blob.version, blob.sha256 if known else None)
saved = 0
for step in range(1, 200):
    path = pathlib.Path(sys.argv[1], str(step), "a.bin")
    child = os.fork()
    if child == 0:
        count = 0
        def wrap(original):
            def call(*args, **kwargs):
                global count
                count += 1
                if count == step:
                    os._exit(9)
                return original(*args, **kwargs)
            return call
        for name in names:
            setattr(os, name, wrap(getattr(os, name)))
        transfer.download(store, blob, path, chunk_bytes=100, streams=2)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not path.exists() or path.read_bytes() == content
    journal = path.with_name("a.bin.incomplete.journal")
    lines = journal.read_text().splitlines() if journal.exists() else []
    there = {int(line.split()[0]) for line in lines[1:]}
    reads.clear()
    if path.exists() and known:
        there = set(range(6))
    elif path.exists():
        there = set()
    done = transfer.download(store, blob, path, chunk_bytes=100, streams=2)
    assert path.read_bytes() == content
    assert not there & reads.keys(), (there, reads)
    assert set(reads) | there == set(range(6))
    saved += bool(there)
    assert set(os.listdir(path.parent)) <= {"a.bin", journal.name}, os.listdir(path.parent)
    if not killed:
        break
print(step, saved)
"""


@pytest.mark.parametrize("known", ["known", "unknown"])
def test_a_process_killed_at_any_step_leaves_what_the_next_one_goes_on_with(
    known: str,
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        done = run(KILLED_AT_EACH_STEP, folder, known)
    assert done.returncode == 0, done.stderr
    steps, saved = map(int, done.stdout.split())
    assert 30 < steps < 199
    assert saved > 10


# Fetches argv[1] to argv[2] and prints how many chunks its journal has, and at last the digest.
FETCHES = """
import logging, sys
from pathlib import Path
from glm3sdk.adapters.storage import transfer, transfer_journal
from glm3sdk.adapters.storage.https import HttpsBlobStore

transfer._SYNCED_BYTES, count = 1, 0
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")

class Journal(transfer_journal.Journal):
    def add(self, chunks):
        global count
        chunks = list(chunks)
        super().add(chunks)
        count += len(chunks)
        print(count, flush=True)

transfer.Journal = Journal
store = HttpsBlobStore()
print(transfer.download(store, store.stat(sys.argv[1]), Path(sys.argv[2]), chunk_bytes=100,
                        streams=1).sha256, flush=True)
"""


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        server.pages["/a.bin"] = Page(CONTENT)
        yield server


@pytest.fixture
def starting(web: WebServer, path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FETCHES, f"{web.address}/a.bin", str(path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def chunks_asked(web: WebServer) -> list[int]:
    ranges = [seen.headers["range"] for seen in web.seen if seen.method == "GET"]
    return [int(text.removeprefix("bytes=").split("-")[0]) // CHUNK for text in ranges]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def first(
    web: WebServer, starting: Callable[[], subprocess.Popen[str]], released: threading.Event
) -> subprocess.Popen[str]:
    """A process that has chunks 0 to 5 and, until they are released, waits for the others."""
    asked = threading.Event()
    web.on("GET", skip=6, body=50, hold=released, before=asked.set)
    process = starting()
    while line(process) != "6":
        assert process.poll() is None
    assert asked.wait(60)
    return process


def test_a_download_goes_on_after_kill_9(
    web: WebServer,
    path: Path,
    first: subprocess.Popen[str],
    starting: Callable[[], subprocess.Popen[str]],
) -> None:
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert recorded(path) == {0, 1, 2, 3, 4, 5}
    second = starting()
    output, _ = second.communicate()
    assert output.split()[-1] == DIGEST
    assert chunks_asked(web) == [*range(7), *range(6, 11)]
    assert path.read_bytes() == CONTENT
    assert only(path)


def test_processes_with_one_destination_take_turns_and_fetch_it_once(
    web: WebServer,
    path: Path,
    first: subprocess.Popen[str],
    starting: Callable[[], subprocess.Popen[str]],
    released: threading.Event,
) -> None:
    others = [starting(), starting()]
    for other in others:
        assert line(other) == f"another process fetches {path}; waiting for it"
    released.set()
    for process in (first, *others):
        output, _ = process.communicate()
        assert output.split()[-1] == DIGEST
    assert chunks_asked(web) == list(range(11))
    assert only(path)


def test_who_waits_goes_on_where_another_one_was_killed(
    web: WebServer,
    path: Path,
    first: subprocess.Popen[str],
    starting: Callable[[], subprocess.Popen[str]],
) -> None:
    second = starting()
    assert line(second).startswith("another process")
    first.kill()
    output, _ = second.communicate()
    assert output.split()[-1] == DIGEST
    assert chunks_asked(web) == [*range(7), *range(6, 11)]


def test_a_disk_without_locks_will_do(
    store: Faulty, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert fetch(store, put(store), path).sha256 == DIGEST
    assert only(path)


def test_a_local_file_is_fetched_like_any_blob(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    store = LocalBlobStore()
    blob = store.stat(str(tmp_path / "a.bin"))
    assert blob is not None
    assert download(store, blob, tmp_path / "b" / "c" / "d.bin") == FileEntry(1042, DIGEST)
    assert (tmp_path / "b" / "c" / "d.bin").read_bytes() == CONTENT


def test_waits_grow_and_each_is_drawn_from_nothing_up() -> None:
    drawn, waits = [], []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high / 2

    def fail() -> None:
        raise BlobUnavailableError("busy")

    with pytest.raises(BlobUnavailableError, match=r"^busy \(tried 10 times\)$"):
        retried(fail, attempts=10, sleep=waits.append, uniform=uniform)
    assert drawn == [(0, w) for w in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20, 20)]
    assert waits == [high / 2 for _, high in drawn]
    with pytest.raises(BlobUnavailableError, match=r"^busy \(tried once\)$"):
        retried(fail, attempts=1)


def test_a_store_that_says_when_to_come_back_is_waited_for() -> None:
    waits: list[float] = []
    for asked, waited in ((7, 7), (0, 0), (10_000, 60)):
        left = [BusyError("busy", retry_after_s=asked)]

        def act(left: list[BusyError] = left) -> str:
            if left:
                raise left.pop()
            return "done"

        assert retried(act, sleep=waits.append) == "done"
        assert waited <= waits[-1] <= waited + 0.2
