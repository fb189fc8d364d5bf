"""Blobs on a local disk: files, published by a rename."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from glm3sdk.adapters.storage.whole_directory import make_directories, sync_directory
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import BlobAccessError, BlobChangedError, CheckpointWriteError, TransferError
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)
_HERE = re.compile(r"(?:\.{1,2}(?:/+|$))*")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.glm3-part")
_CHUNK = 1 << 20


class LocalBlobStore:
    """A `BlobStore` for paths and `file://` URIs.

    A path is taken as it is; in a `file://` URI `%xx` stands for a byte, and every other
    character for itself. Links to files are followed; links to directories are not listed. A
    file's version is its inode, time of change and size.
    """

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None, also where there is a directory.

        Raises:
            BlobAccessError: it is not a local URI, or may not be looked at.
        """
        path = _path(uri)
        with _accessing(path), suppress(FileNotFoundError, NotADirectoryError):
            return _blob(uri, os.stat(path))
        return None

    def list(self, uri: str) -> Iterator[Blob]:
        """Every file below `uri`, sorted by URI.

        Raises:
            BlobAccessError: a directory may not be read.
        """
        start = uri.rstrip("/") + "/"
        top = _path(start + "x").parent
        quoting = _SCHEME.match(uri) is not None
        with _accessing(top):
            found = {
                start + (name.replace("%", "%25") if quoting else name): top / name
                for name in _names(top)
            }
        for name, path in sorted(found.items()):
            with _accessing(path), suppress(FileNotFoundError):
                if blob := _blob(name, os.stat(path)):
                    yield blob

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a file.

        Raises:
            BlobChangedError: it was replaced, changed or removed.
            BlobAccessError: it may not be read.
            TransferError: the range is not within it.
        """
        path = _path(blob.uri)
        check_range(blob, start, stop)
        parts = []
        with _accessing(path):
            try:
                file = path.open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
                raise _changed(blob) from exc
            with file:
                at = start
                while at < stop:
                    parts.append(os.pread(file.fileno(), stop - at, at))
                    if not parts[-1]:
                        raise _changed(blob)
                    at += len(parts[-1])
                # Looked at last: it may be written in place while it is read.
                there = _blob(blob.uri, os.fstat(file.fileno()))
        if there is None or (there.version != blob.version and blob.version is not None):
            raise _changed(blob)
        return b"".join(parts)

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Write beside its place, bring it to the disk and rename it.

        Raises:
            BlobAccessError: nothing can be written there (no room, no permission).
            TransferError: the source cannot be read.
        """
        path = _path(uri)
        if _UNFINISHED.fullmatch(path.name):
            raise BlobAccessError(f"{uri!r} is a name of this store's own; pass another one")
        chunks = _chunks(source) if isinstance(source, Path) else iter((source,))
        first = next(chunks, b"")  # a source that cannot be read makes no directory
        with _accessing(path):
            make_directories(path.parent)
            _tidy(path.parent)
            with _unfinished(path.parent) as (file, part):
                file.write(first)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
                os.replace(part, path)
            sync_directory(path.parent)
        return Blob(uri, status.st_size, version=_version(status))

    def delete(self, uri: str) -> None:
        """Remove a file; nothing happens where there is none.

        Raises:
            BlobAccessError: it may not be removed.
        """
        path = _path(uri)
        if self.stat(uri) is not None:
            with _accessing(path), suppress(FileNotFoundError):
                path.unlink()
                sync_directory(path.parent)


def _path(uri: str) -> Path:
    path = uri
    if _SCHEME.match(uri):
        scheme = _FILE.match(uri)
        if scheme is None:
            raise BlobAccessError(f"{uri!r} is not local; pass a path or file:///PATH")
        check_blob_uri(uri)
        path = unquote(uri[scheme.end() :])
    # A path may begin with "../": the user wrote that. Further on, a name of a server's may have.
    try:
        check_blob_uri(_HERE.sub("", path, count=1))
    except BlobAccessError as exc:
        raise BlobAccessError(f"{uri!r}: {exc}") from None
    return Path(path)


def _blob(uri: str, status: os.stat_result) -> Blob | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return Blob(uri, status.st_size, version=_version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _changed(blob: Blob) -> BlobChangedError:
    return BlobChangedError(f"{blob.uri} was replaced, changed or removed while it was read")


def _names(top: Path) -> Iterator[str]:
    """Paths of the files below `top`, relative to it."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for directory, _, names in os.walk(top, onerror=refuse):
        for name in names:
            if not _UNFINISHED.fullmatch(name):
                yield os.path.relpath(os.path.join(directory, name), top)


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as exc:
        raise TransferError(f"cannot read {source}: {exc.strerror or exc}") from exc


@contextmanager
def _accessing(path: Path) -> Iterator[None]:
    try:
        with writing(path):
            yield
    except CheckpointWriteError as exc:
        cause = exc.__cause__
        if isinstance(cause, PermissionError):
            raise BlobAccessError(
                f"no permission for {path}: ask for it or pass another path"
            ) from cause
        raise BlobAccessError(str(exc)) from cause


@contextmanager
def _unfinished(directory: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new hidden file, locked: the lock says that its writer is alive."""
    while True:
        part = directory / f".{secrets.token_hex(8)}.glm3-part"
        file = part.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tidied = not part.exists()
        except BlockingIOError:  # someone is about to tidy it up
            tidied = True
        except OSError:  # no locks here: then leftovers stay
            tidied = False
        if not tidied:
            break
        file.close()
    try:
        with file:
            yield file, part
    finally:
        part.unlink(missing_ok=True)


def _tidy(directory: Path) -> None:
    """Remove what killed processes left."""
    for name in filter(_UNFINISHED.fullmatch, os.listdir(directory)):
        with suppress(OSError), (directory / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (directory / name).unlink()
