"""Models on the local disk: each file once, under its sha256, however many models have it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE, cache_folder
from glm3sdk.adapters.storage import cache_pruning, whole_directory
from glm3sdk.adapters.storage.cache_layout import (
    INDEX,
    CachedModel,
    CacheLayout,
    entries,
    is_digest,
    is_file,
    read_json,
    write_whole,
)
from glm3sdk.adapters.storage.manifest import (
    MANIFEST_FILE,
    FileEntry,
    digest_file,
    encode_manifest,
)
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.adapters.storage.transfer import INCOMPLETE, download
from glm3sdk.adapters.storage.whole_directory import sync_directory
from glm3sdk.errors import InvalidCheckpointError, TransferError, UserError, unknown_name
from glm3sdk.ports.blob_store import Blob, BlobStore
from glm3sdk.ports.tensor_values import is_plain_name

_LOOKS = 5
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def models_folder() -> Path:
    """The root of the user's own model cache.

    Raises:
        UserError: the user's cache is switched off.
    """
    folder = cache_folder()
    if folder is None:
        raise UserError(
            f"there is no folder to keep models in: {FOLDER_VARIABLE} is empty, or there is no "
            f"home directory; set {FOLDER_VARIABLE} to a folder with room"
        )
    return folder / "hub"


class ModelCache:
    """A cache that several processes may use at once, and that survives being killed.

    What it found, fetched or published is not pruned by anybody else until it is closed: with
    `with`, at the end of the block. `cache_layout` says what lies where.

    Args:
        root: its folder, made when something is fetched.
    """

    def __init__(self, root: Path) -> None:
        self._layout = CacheLayout(root)

    def __enter__(self) -> ModelCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is in use. The cache can be used on."""
        self._layout.release()

    def find(self, key: str) -> CachedModel | None:
        """The model that a key stands for: all files are there, in their sizes.

        Returns:
            None where there is none, or only a damaged one; fetch it then.
        """
        ref = self._layout.ref(key)
        for _ in range(_LOOKS):  # another process may give the key another revision
            revision = read_json(ref).get("revision")
            if not is_digest(revision):
                return None
            with suppress(OSError):  # a cache that one may only read
                self._layout.hold(str(revision))
            model = self._layout.model(ref)
            if model is None or model.revision == revision:
                break
        if model is not None:
            with suppress(OSError):
                os.utime(ref)
        return model

    def fetch(
        self,
        store: BlobStore,
        blob: Blob,
        *,
        sha256: str | None = None,
        progress: Callable[[int], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FileEntry:
        """Have a blob in the cache; it is fetched where it is not there yet.

        Args:
            store: where it is.
            blob: what `store.stat` said.
            sha256: what its bytes must have, where that is known.
            progress: is told how many bytes are newly there, altogether the blob's size.
            should_stop: is asked several times a second.

        Raises:
            Any error of `transfer.download`.
        """
        expected = sha256 or blob.sha256
        if expected is None:
            return self._fetch_unknown(store, blob, progress, should_stop)
        if not is_digest(expected):
            raise TransferError(f"{shown(blob.uri)}: {expected!r} is no sha256; use another source")
        place = self._layout.blobs / expected
        with self._layout.writing():
            self._layout.hold(expected)
            if is_file(place, blob.size):
                progress(blob.size)
            else:
                download(
                    store, blob, place, sha256=sha256, progress=progress, should_stop=should_stop
                )
            place.chmod(0o444)
        return FileEntry(blob.size, expected)

    def missing(self, blob: Blob, *, sha256: str | None = None) -> int:
        """Bytes of a blob that are not on the disk yet, told without asking the store."""
        expected = sha256 or blob.sha256
        place = self._layout.incoming / _unnamed(blob)
        if expected is None and blob.version is not None:
            origin = read_json(self._layout.origins / f"{place.name}.json")
            expected = origin.get("sha256")
        if is_digest(expected):
            place = self._layout.blobs / str(expected)
        if is_file(place, blob.size):
            return 0
        with suppress(OSError):  # holes of an unfinished file take no room
            unfinished = place.with_name(place.name + INCOMPLETE).stat()
            return max(blob.size - unfinished.st_blocks * 512, 0)
        return blob.size

    def publish(
        self,
        key: str,
        files: Mapping[str, FileEntry],
        *,
        source: str,
        digests_known: bool,
        check: Callable[[Path], None] = lambda _: None,
    ) -> Path:
        """Make a model of fetched files, under a key, in place of what the key stood for.

        Args:
            key: a model's name or URI.
            files: each file's name in the model, with what `fetch` returned.
            source: where they came from.
            digests_known: whether they were compared with digests known beforehand.
            check: looks at the directory before anybody can find it; its error ends this.

        Returns:
            The model's directory, a published checkpoint.

        Raises:
            InvalidCheckpointError: a name is not a plain one, or that of the manifest.
            TransferError: a file was not fetched.
            CheckpointWriteError: there is no room or no permission.
        """
        for name in files:
            if not is_plain_name(name) or name == MANIFEST_FILE:
                raise InvalidCheckpointError(
                    f"{shown(source)}: {name!r} cannot be a file of a model; use another source"
                )
        layout, manifest = self._layout, encode_manifest(files)
        revision = hashlib.sha256(manifest).hexdigest()
        directory = layout.models / revision
        with layout.writing():
            layout.hold(revision)
            for name, entry in files.items():
                self._require(name, entry)
            if layout.files(revision) is None:
                with whole_directory.temporary(directory) as new:
                    for name, entry in files.items():
                        _link(layout.blobs / entry.sha256, new / name)
                    check(new)
                    write_whole(new / MANIFEST_FILE, manifest)
                    with layout.alone(INDEX):
                        if not whole_directory.is_published(directory):  # or not any more
                            whole_directory.remove(directory)
                        whole_directory.publish(new, directory)
            layout.write_json(
                layout.ref(key),
                {
                    "key": shown(key),
                    "revision": revision,
                    "source": shown(source),
                    "digests_known": digests_known,
                    "time": time.time(),
                },
            )
        return directory

    def list(self) -> tuple[CachedModel, ...]:
        """The models that are there whole, sorted by key."""
        models = map(self._layout.model, entries(self._layout.refs))
        return tuple(sorted((m for m in models if m is not None), key=lambda model: model.key))

    def prune(self, keys: Iterable[str] = ()) -> cache_pruning.Pruned:
        """Forget keys, then remove every file that no key needs, unfinished ones too.

        What another process uses at that moment is kept. What this object itself uses is
        given back first.

        Args:
            keys: of `list`.

        Raises:
            UnknownNameError: a key is not in the cache; nothing was removed.
            CheckpointWriteError: something cannot be removed.
        """
        self.close()
        known = {model.key: model for model in self.list()}
        wanted = sorted({shown(key) for key in keys})
        for key in wanted:
            if key not in known:
                raise unknown_name("model in the cache", key, known)
        if not self._layout.root.is_dir():
            return cache_pruning.Pruned(0, ())
        with self._layout.writing():
            return cache_pruning.prune(self._layout, [known[key] for key in wanted])

    def _fetch_unknown(
        self,
        store: BlobStore,
        blob: Blob,
        progress: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> FileEntry:
        layout, name = self._layout, _unnamed(blob)
        unnamed, origin = layout.incoming / name, layout.origins / f"{name}.json"
        with layout.writing(), layout.alone(name):
            if blob.version is not None and (entry := self._remembered(origin, blob.size)):
                progress(blob.size)
                return entry
            if blob.version is not None and is_file(unnamed, blob.size):
                entry = digest_file(unnamed)  # all of it had come when a process was killed
                progress(blob.size)
            else:
                entry = download(store, blob, unnamed, progress=progress, should_stop=should_stop)
            layout.hold(entry.sha256)
            if blob.version is not None:
                layout.write_json(origin, {"uri": shown(blob.uri), "sha256": entry.sha256})
            unnamed.chmod(0o444)
            os.replace(unnamed, layout.blobs / entry.sha256)
            sync_directory(layout.blobs)
            return entry

    def _remembered(self, origin: Path, size: int) -> FileEntry | None:
        sha256 = str(read_json(origin).get("sha256"))
        if not is_digest(sha256):
            return None
        self._layout.hold(sha256)
        there = is_file(self._layout.blobs / sha256, size)
        return FileEntry(size, sha256) if there else None

    def _require(self, name: str, entry: FileEntry) -> None:
        place = self._layout.blobs / entry.sha256
        if is_digest(entry.sha256):
            self._layout.hold(entry.sha256)
        if not is_digest(entry.sha256) or not is_file(place, entry.size):
            raise TransferError(f"{place} is not there, the bytes of {name}; fetch them again")


def _unnamed(blob: Blob) -> str:
    """What stands for a blob whose sha256 is not known."""
    facts = [blob.uri, blob.version, blob.size]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _link(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        with blob.open("rb") as source, path.open("xb") as copy:
            shutil.copyfileobj(source, copy, 1024 * 1024)
            copy.flush()
            os.fsync(copy.fileno())
        path.chmod(0o444)
