"""The safe way of a blob to the local disk, the same for every store.

The blob's version is pinned, chunks are read by several threads into `PATH.incomplete`, and
`PATH.incomplete.journal` says which of them are on the disk: after a failure, a kill or a
power cut the next call fetches the others alone. The sha256 is taken of what lies in the file,
behind the threads. The file gets its name when all of it is there and right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glm3sdk.adapters.storage.chunk_fetch import ChunkFetch
from glm3sdk.adapters.storage.file_lock import take_lock
from glm3sdk.adapters.storage.manifest import FileEntry, digest_file
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.adapters.storage.transfer_journal import Journal
from glm3sdk.adapters.storage.whole_directory import sync_directory
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import (
    BlobChangedError,
    BlobUnavailableError,
    CheckpointWriteError,
    TransferError,
)
from glm3sdk.ports.blob_store import Blob, BlobStore

_log = logging.getLogger(__name__)

INCOMPLETE = ".incomplete"
JOURNAL = ".incomplete.journal"
_SYNCED_BYTES = 64 * 1024 * 1024  # a kill loses no more than this, or than a second
_SYNCED_S = 1.0
_TICK_S = 0.1
_GB = 10**9


def download(
    store: BlobStore,
    blob: Blob,
    path: Path,
    *,
    sha256: str | None = None,
    streams: int = 8,
    chunk_bytes: int = 8 * 1024 * 1024,
    progress: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    attempts: int = 6,
    sleep: Callable[[float], None] | None = None,
) -> FileEntry:
    """Fetch a blob into a file, or what is missing of it, and check it.

    Several processes may do so for one path: they take turns. A file that is at `path` with
    the expected sha256 is not fetched again; any other is replaced.

    Args:
        store: where the blob is.
        blob: what `store.stat` said; its version is what is fetched.
        path: the file to be; directories are made.
        sha256: what the bytes must have; `blob.sha256` where it is not given.
        streams: how many chunks are read at once; streams * chunk_bytes is held in memory.
        chunk_bytes: how much is read by one request.
        progress: is told, in the calling thread, how many bytes are newly there, the first
            time those that an earlier call left; together they are the blob's size.
        should_stop: is asked several times a second.
        attempts: how often a chunk is tried.
        sleep: waits before another try, in seconds.

    Returns:
        The size and the sha256 of what is at `path` now.

    Raises:
        BlobChangedError: the blob was replaced or removed; what was fetched is dropped.
        BlobUnavailableError: the store did not answer; the next call goes on.
        BlobAccessError: the store refuses.
        TransferError: the bytes are not the expected ones (they are dropped), or
            `should_stop` said so (the next call goes on).
        CheckpointWriteError: there is no room or no permission.
    """
    expected = _expected(blob, sha256)
    incomplete = _beside(path, INCOMPLETE)
    journal = Journal(_beside(path, JOURNAL), _identity(blob, expected, chunk_bytes))
    with writing(path):
        if found := _already_there(path, blob, expected):
            progress(blob.size)
            return found
        if path.is_dir():
            raise CheckpointWriteError(
                f"cannot write {path}: it is a directory; pass a file's path"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path, journal, should_stop) as (file, fetched):
            promised = digest_file(path).sha256 if fetched and expected is None else expected
            if found := _already_there(path, blob, promised):
                incomplete.unlink()
                progress(blob.size)
                return found
            try:
                there = _prepared(file, path, journal, blob, expected)
                fetch = ChunkFetch(
                    store=store,
                    blob=blob,
                    file=file,
                    chunk_bytes=chunk_bytes,
                    there=there,
                    attempts=attempts,
                    sleep=sleep,
                )
                digest = _run(fetch, journal, streams, progress, should_stop)
            except BlobUnavailableError as exc:
                raise BlobUnavailableError(f"{exc}; {_kept(fetch)}") from exc
            except BlobChangedError:
                _drop(incomplete, journal)
                raise
            finally:
                journal.close()
            if expected not in (None, digest):
                _drop(incomplete, journal)
                raise TransferError(
                    f"{shown(blob.uri)} did not arrive as it should be: its sha256 is {digest} "
                    f"and must be {expected}; it was dropped. Fetch it again; if it differs "
                    "again, the source is damaged or is another version: use another source"
                )
            os.fsync(file)
            os.rename(incomplete, path)
            sync_directory(path.parent)
            journal.remove()
            return FileEntry(blob.size, digest)


def _expected(blob: Blob, sha256: str | None) -> str | None:
    if sha256 is not None and blob.sha256 not in (None, sha256):
        raise TransferError(
            f"{shown(blob.uri)} is not what is wanted: its store says sha256 {blob.sha256} and it "
            f"must be {sha256}; nothing was fetched, use another source"
        )
    return sha256 or blob.sha256


def _identity(blob: Blob, expected: str | None, chunk_bytes: int) -> dict[str, object]:
    return {
        "uri": shown(blob.uri),
        "uri_sha256": hashlib.sha256(blob.uri.encode()).hexdigest(),
        "size": blob.size,
        "version": blob.version,
        "sha256": expected,
        "chunk_bytes": chunk_bytes,
    }


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _already_there(path: Path, blob: Blob, expected: str | None) -> FileEntry | None:
    """What is at `path`, if that is known to be the blob."""
    if expected is None or not path.is_file() or path.stat().st_size != blob.size:
        return None
    found = digest_file(path)
    return found if found == FileEntry(blob.size, expected) else None


@contextmanager
def _turn(
    path: Path, journal: Journal, should_stop: Callable[[], bool]
) -> Iterator[tuple[int, bool]]:
    """The unfinished file, for this process alone; and whether another one fetched this blob.

    The latter is so when the file that was waited for is at `path` now and its journal was
    about the same blob.
    """
    incomplete, awaited, told = _beside(path, INCOMPLETE), None, False
    while (file := take_lock(incomplete, wait=False)) is None:
        place = _place(incomplete)
        awaited = place if journal.is_of_this() else awaited
        if not told:
            _log.info("another process fetches %s; waiting for it", path)
            told = True
        if should_stop():
            raise TransferError(f"{path} was not fetched: this was stopped while another one did")
        time.sleep(_TICK_S)
    try:
        yield file, awaited is not None and _place(path) == awaited
    finally:
        os.close(file)


def _place(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _prepared(
    file: int, path: Path, journal: Journal, blob: Blob, expected: str | None
) -> set[int]:
    """The chunks that an earlier call left; there is room for the others."""
    there: set[int] = set()
    # A blob without a version may have become another one, which only a digest tells.
    if os.fstat(file).st_size == blob.size and (blob.version or expected):
        there = journal.resume()
    if not there:
        journal.start()  # before the bytes that an old one is about are gone
        os.ftruncate(file, 0)
    missing = blob.size - os.fstat(file).st_blocks * 512
    free = shutil.disk_usage(path.parent).free
    if free < missing:
        raise CheckpointWriteError(
            f"{path.parent} has {free / _GB:.2f} GB free and {path.name} takes "
            f"{missing / _GB:.2f} GB more: free some space there or write elsewhere"
        )
    if blob.size and not there:
        os.posix_fallocate(file, 0, blob.size)
        sync_directory(path.parent)
    return there


def _run(
    fetch: ChunkFetch,
    journal: Journal,
    streams: int,
    progress: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> str:
    """Fetch what is missing; when this returns the sha256, all is on the disk."""
    unsafe: list[int] = []  # fetched, and perhaps not on the disk yet
    synced = time.monotonic()

    def make_safe() -> None:
        nonlocal synced
        if unsafe:
            fetch.sync()
            journal.add(unsafe)
            unsafe.clear()
        synced = time.monotonic()

    try:
        if fetch.there:
            progress(fetch.bytes_there)
        coming = fetch.count - len(fetch.there)
        fetch.start(streams)
        while fetch.sha256 is None or coming or unsafe:
            if should_stop():
                raise TransferError(f"the download was stopped; {_kept(fetch)}")
            if (chunk := fetch.next(_TICK_S)) is not None:
                unsafe.append(chunk)
                coming -= 1
                progress(fetch.length(chunk))
            waiting = sum(map(fetch.length, unsafe))
            if not coming or waiting >= _SYNCED_BYTES or time.monotonic() - synced >= _SYNCED_S:
                make_safe()
        fetch.stop()
        return fetch.sha256
    except OSError:  # of the disk: what it has not confirmed will be fetched again
        fetch.stop()
        raise
    except BaseException:
        unsafe += fetch.stop()
        with suppress(OSError):
            make_safe()
        raise


def _kept(fetch: ChunkFetch) -> str:
    there, size = fetch.bytes_there, fetch.blob.size
    return f"{there} of {size} bytes are kept, and the next try goes on from there"


def _drop(incomplete: Path, journal: Journal) -> None:
    incomplete.unlink(missing_ok=True)
    journal.remove()
