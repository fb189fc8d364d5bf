"""Threads that fetch a blob's chunks into a file, and one that takes the sha256 behind them."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable

from glm3sdk.adapters.storage.retries import retried
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.errors import BlobUnavailableError
from glm3sdk.ports.blob_store import Blob, BlobStore

_HASHED_AT_ONCE = 1024 * 1024


class _Stopped(Exception):
    """Another thread failed, or the caller gave up."""


class ChunkFetch:
    """One fetch of the chunks that a file lacks.

    Args:
        store: where the blob is.
        blob: what is fetched.
        file: a descriptor, open for reading and writing.
        chunk_bytes: all chunks but the last are so long.
        there: numbers of the chunks that the file has.
        attempts: how often a chunk is tried.
        sleep: waits before another try; None: a wait that `stop` ends.

    Attributes:
        blob: what is fetched.
        there: numbers of the chunks that the file has.
        count: how many chunks the blob has.
        sha256: of the file, once all of it is there and was read.
    """

    def __init__(
        self,
        *,
        store: BlobStore,
        blob: Blob,
        file: int,
        chunk_bytes: int,
        there: set[int],
        attempts: int,
        sleep: Callable[[float], None] | None,
    ) -> None:
        self._store, self.blob = store, blob
        self._file, self._own = file, -1
        self._chunk_bytes, self._attempts = chunk_bytes, attempts
        self._sleep = sleep
        self.count = -(-blob.size // chunk_bytes)
        self.there = there
        self.sha256: str | None = None
        self._todo = deque(chunk for chunk in range(self.count) if chunk not in there)
        self._stop = threading.Event()
        self._grown = threading.Condition()
        self._events: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def bytes_there(self) -> int:
        """How much of the blob the file has."""
        return sum(map(self.length, tuple(self.there)))

    def length(self, chunk: int) -> int:
        """Bytes of a chunk."""
        return min(self._chunk_bytes, self.blob.size - chunk * self._chunk_bytes)

    def start(self, streams: int) -> None:
        """Start the threads, `streams` of them to fetch."""
        # Should an interrupt end `stop` early, no other file gets the number that they use.
        self._own = os.dup(self._file)
        works = [self._hash, *[self._fetch] * min(streams, len(self._todo))]
        for work in works:
            thread = threading.Thread(target=self._reporting, args=(work,), name="glm3sdk-fetch")
            thread.start()
            self._threads.append(thread)

    def next(self, timeout_s: float) -> int | None:
        """Wait for a chunk to be in the file.

        Returns:
            Its number, once for each that was fetched; None where none came in time, or where
            only `sha256` did.

        Raises:
            Any error of a thread: of the store, or an OSError of the file.
        """
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, BaseException):
            raise event
        return event

    def sync(self) -> None:
        """Bring to the disk what is in the file.

        Raises:
            OSError: the disk does not confirm it.
        """
        os.fdatasync(self._file)

    def stop(self) -> list[int]:
        """End the threads, each after what it is doing; the chunks that `next` did not tell."""
        self._stop.set()
        with self._grown:
            self._grown.notify_all()
        for thread in self._threads:
            thread.join()
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        untold = []
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, int):
                untold.append(event)
        return untold

    def _reporting(self, work: Callable[[], None]) -> None:
        try:
            work()
        except _Stopped:
            pass
        except BaseException as exc:  # for the thread that waits in `next`
            self._stop.set()
            self._events.put(exc)

    def _fetch(self) -> None:
        while not self._stop.is_set():
            try:
                chunk = self._todo.popleft()
            except IndexError:
                return
            self._fetch_chunk(chunk)
            with self._grown:
                self.there.add(chunk)
                self._grown.notify_all()
            self._events.put(chunk)

    def _fetch_chunk(self, chunk: int) -> None:
        start = chunk * self._chunk_bytes
        stop = start + self.length(chunk)
        data = memoryview(
            retried(
                lambda: self._read(start, stop), attempts=self._attempts, sleep=self._sleep_or_stop
            )
        )
        while data:
            written = os.pwrite(self._own, data, start)
            data, start = data[written:], start + written

    def _read(self, start: int, stop: int) -> bytes:
        try:
            data = self._store.read(self.blob, start, stop)
        except OSError as exc:  # of a store that does not translate its connection's errors
            raise BlobUnavailableError(f"{shown(self.blob.uri)} cannot be read: {exc}") from exc
        if len(data) != stop - start:
            raise BlobUnavailableError(
                f"{shown(self.blob.uri)}: {len(data)} bytes came instead of {stop - start}"
            )
        return data

    def _sleep_or_stop(self, seconds: float) -> None:
        if self._sleep is None:
            self._stop.wait(seconds)
        else:
            self._sleep(seconds)
        if self._stop.is_set():
            raise _Stopped

    def _hash(self) -> None:
        # From the file, not from the threads' memory: it is in order there, and it is what counts.
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
        for chunk in range(self.count):
            with self._grown:
                while chunk not in self.there and not self._stop.is_set():
                    self._grown.wait()
            at = chunk * self._chunk_bytes
            end = at + self.length(chunk)
            while at < end:
                if self._stop.is_set():
                    return
                read = os.preadv(self._own, [buffer[: end - at]], at)
                if not read:
                    raise BlobUnavailableError(
                        "the unfinished file was cut short by something else; try again"
                    )
                digest.update(buffer[:read])
                at += read
        self.sha256 = digest.hexdigest()
        self._events.put(None)
