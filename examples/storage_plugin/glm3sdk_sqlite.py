"""Blobs in SQLite files, for glm3sdk: `sqlite:///data/models.db/chatglm3-6b`.

The path up to ".db" is the file, the rest is the key. SQLite holds up to 1 GB a blob.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    TransferError,
)
from glm3sdk.hookspecs import RegisterBlobStore, hookimpl
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob


@hookimpl
def glm3_register_blob_stores(register: RegisterBlobStore) -> None:
    """Let glm3sdk know of the scheme; nothing is opened here."""
    register("sqlite", SqliteBlobStore)


_URI = re.compile(r"sqlite://(?P<file>/.*?\.db)/(?P<key>.*)", re.DOTALL)
_TABLE = """
CREATE TABLE IF NOT EXISTS blobs (
    key TEXT PRIMARY KEY, version TEXT NOT NULL, sha256 TEXT NOT NULL, content BLOB NOT NULL
)"""


class SqliteBlobStore:
    """A `BlobStore`. Every call has a connection of its own, so that threads may share it."""

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None."""
        check_blob_uri(uri)
        with _database(uri) as (database, key):
            row = database.execute(
                "SELECT length(content), version, sha256 FROM blobs WHERE key = ?", (key,)
            ).fetchone()
        return Blob(uri, *row) if row else None

    def list(self, uri: str) -> Iterator[Blob]:
        """Every blob below `uri`, sorted by URI."""
        start = uri.rstrip("/") + "/"
        with _database(start) as (database, prefix):
            rows = database.execute(
                "SELECT key, length(content), version, sha256 FROM blobs "
                "WHERE substr(key, 1, ?) = ?",
                (len(prefix), prefix),
            ).fetchall()
        yield from (Blob(start + key[len(prefix) :], *row) for key, *row in sorted(rows))

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of the version that `stat` or `list` told of."""
        check_range(blob, start, stop)
        with _database(blob.uri) as (database, key):
            row = database.execute(
                "SELECT substr(content, ?, ?) FROM blobs WHERE key = ? AND version = ?",
                (start + 1, stop - start, key, blob.version),
            ).fetchone()
        if row is None:
            raise BlobChangedError(f"{blob.uri} was replaced or removed while it was read")
        return row[0] or b""  # SQLite has NULL for no byte of an empty blob

    def write(self, uri: str, source: bytes | Path) -> Blob:
        """Put bytes, or a file's, at `uri`: one statement, so whole or not at all."""
        check_blob_uri(uri)
        try:
            content = source.read_bytes() if isinstance(source, Path) else source
        except OSError as exc:
            raise TransferError(f"cannot read {source!s}: {exc.strerror}") from exc
        version, sha256 = secrets.token_hex(8), hashlib.sha256(content).hexdigest()
        with _database(uri) as (database, key):
            database.execute(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", (key, version, sha256, content)
            )
        return Blob(uri, len(content), version, sha256)

    def delete(self, uri: str) -> None:
        """Remove what is at `uri`."""
        check_blob_uri(uri)
        with _database(uri) as (database, key):
            database.execute("DELETE FROM blobs WHERE key = ?", (key,))


@contextmanager
def _database(uri: str) -> Iterator[tuple[sqlite3.Connection, str]]:
    """An open database and the key in it; what goes wrong is told in glm3sdk's errors."""
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise BlobAccessError(f"{uri!r} is not of the form sqlite:///PATH.db/KEY; pass one")
    try:
        with closing(sqlite3.connect(parts["file"], timeout=60)) as database, database:
            database.execute(_TABLE)
            yield database, parts["key"]
    except sqlite3.OperationalError as exc:
        if "locked" in str(exc):
            raise BlobUnavailableError(f"{parts['file']} is busy: {exc}") from exc
        raise BlobAccessError(f"{parts['file']} cannot be used: {exc}; pass another path") from exc
    except sqlite3.Error as exc:
        raise BlobAccessError(f"{parts['file']} cannot be used: {exc}; pass another path") from exc
