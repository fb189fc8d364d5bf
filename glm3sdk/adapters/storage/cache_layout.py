"""Where a model cache keeps what, and who uses it.

Below the root are
  blobs/SHA256            the files, read-only
  models/REVISION/        a published checkpoint: hard links to blobs, and manifest.json
  refs/DIGEST.json        which revision a key (a model's name or URI) stands for
  origins/DIGEST.json     the sha256 of a blob whose store tells a version and no sha256
  incoming/DIGEST         a blob whose sha256 is not known before all of it is there
  locks/NAME              held by who uses the blob or the revision of that name
A revision is the digest of its manifest; a DIGEST is that of what it stands for. Nothing that
a file says becomes a part of a path unless it is a digest or a plain name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE
from glm3sdk.adapters.storage.file_lock import take_lock
from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry, read_manifest
from glm3sdk.adapters.storage.whole_directory import sync_directory
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_JSON = 1024 * 1024
INDEX = "index"  # the lock of what is renamed into its place: refs, origins, revisions


def is_digest(name: object) -> bool:
    """Whether a value is a sha256 in lower-case hexadecimal, and so a safe file name."""
    return isinstance(name, str) and _SHA256.fullmatch(name) is not None


def is_file(path: Path, size: int) -> bool:
    """Whether a plain file, not a link to one, is there and so long."""
    with suppress(FileNotFoundError, NotADirectoryError):
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == size
    return False


def entries(directory: Path) -> list[Path]:
    """What is in a directory of the cache, sorted; what is being written is left out."""
    with suppress(FileNotFoundError):
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    return []


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_JSON))
        if isinstance(content, dict):
            return content
    return {}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file and bring it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@attrs.frozen(kw_only=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        key: the name or URI that it was fetched by, without credentials.
        revision: tells its content from any other.
        path: its directory, a published checkpoint.
        source: where it came from, without credentials.
        digests_known: whether its files were compared with digests known beforehand.
        size: bytes of its files.
        last_used: when it was last found or published, in seconds since 1970.
    """

    key: str
    revision: str
    path: Path
    source: str
    digests_known: bool
    size: int
    last_used: float


class CacheLayout:
    """The paths and the locks of a cache.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self._held: dict[str, int] = {}
        self.root = Path(os.path.abspath(root))
        self.blobs, self.models = self.root / "blobs", self.root / "models"
        self.refs, self.origins = self.root / "refs", self.root / "origins"
        self.incoming, self.locks = self.root / "incoming", self.root / "locks"

    def __del__(self) -> None:
        self.release()

    def ref(self, key: str) -> Path:
        """The file that says what a key stands for."""
        return self.refs / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def files(self, revision: str) -> Mapping[str, FileEntry] | None:
        """What a revision's manifest says, if all of it is there in its size."""
        directory = self.models / revision
        with suppress(OSError, InvalidCheckpointError):
            manifest = read_manifest(directory)
            content = (directory / MANIFEST_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != revision:
                return None
            whole = all(
                is_file(directory / name, entry.size) for name, entry in manifest.files.items()
            )
            if whole and not manifest.directory and not directory.is_symlink():
                return manifest.files
        return None

    def model(self, ref: Path) -> CachedModel | None:
        """What a ref stands for, if all of it is there."""
        content = read_json(ref)
        key, revision, source = (content.get(name) for name in ("key", "revision", "source"))
        known = content.get("digests_known")
        if not (isinstance(key, str) and isinstance(source, str) and isinstance(known, bool)):
            return None
        if not isinstance(revision, str) or not is_digest(revision):
            return None
        files = self.files(revision)
        if files is None:
            return None
        try:
            last_used = ref.stat().st_mtime
        except FileNotFoundError:  # it is being pruned
            return None
        return CachedModel(
            key=key,
            revision=revision,
            path=self.models / revision,
            source=source,
            digests_known=known,
            size=sum(entry.size for entry in files.values()),
            last_used=last_used,
        )

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a ref or an origin, in place of what is there."""
        with self.alone(INDEX):
            new = path.parent / ".new"
            write_whole(new, json.dumps(content, indent=1).encode() + b"\n")
            os.replace(new, path)
            sync_directory(path.parent)

    def remove_json(self, path: Path) -> None:
        """Remove a ref or an origin."""
        with self.alone(INDEX):
            path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def hold(self, name: str) -> None:
        """Use the blob or the revision of a name until `release`: nobody prunes it."""
        if name not in self._held:
            lock = take_lock(self.locks / name, shared=True)
            if lock is not None:
                self._held[name] = lock

    def release(self) -> None:
        """Give back all that is held."""
        while self._held:
            os.close(self._held.popitem()[1])

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until nobody uses a name, and keep others waiting during the block."""
        lock = take_lock(self.locks / name)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    @contextmanager
    def if_free(self, name: str) -> Iterator[bool]:
        """Whether nobody uses a name; if so, nobody will during the block."""
        lock = take_lock(self.locks / name, wait=False)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def remove_idle_locks(self) -> None:
        """Remove the lock files of what is not there any more."""
        for path in entries(self.locks):
            there = any((d / path.name).exists() for d in (self.blobs, self.models, self.incoming))
            if path.name != INDEX and not there:
                with self.if_free(path.name) as free:
                    if free:
                        path.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the directories, and name the root in an error of the disk."""
        try:
            with writing(self.root):
                for directory in (self.blobs, self.models, self.refs, self.origins):
                    directory.mkdir(parents=True, exist_ok=True)
                self.incoming.mkdir(exist_ok=True)
                self.locks.mkdir(exist_ok=True)
                yield
        except CheckpointWriteError as exc:
            raise CheckpointWriteError(
                f"{exc} ({FOLDER_VARIABLE} chooses another folder for the cache)"
            ) from exc
