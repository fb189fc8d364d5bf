"""Directories that appear whole or not at all, also when the process is killed.

A directory is published when it has its manifest and its name. It is written under a hidden
name beside its place, `.NAME.tmp-PID-RANDOM`, and renamed. One that is already there cannot
be replaced in one step: it is renamed to `.NAME.old-PID-RANDOM` first and removed last, and
as long as nothing bears the name, what was renamed stands for it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glm3sdk.adapters.storage.manifest import MANIFEST_FILE
from glm3sdk.errors import InvalidCheckpointError

_log = logging.getLogger(__name__)
_HIDDEN = re.compile(r"\.(?P<name>[^.].*)\.(?P<kind>tmp|old)-\d+-[0-9a-f]{8}", re.DOTALL)
_LOOKS = 5


def is_published(directory: Path) -> bool:
    """Whether a directory has its manifest."""
    return (directory / MANIFEST_FILE).is_file()


def find(path: Path) -> Path | None:
    """Where the directory that is published as `path` lies, or None."""
    for _ in range(_LOOKS):  # a writer may be between its two renames
        if is_published(path):
            return path
        if moved := _moved(path):
            return moved[-1]
    return None


def published_names(parent: Path) -> set[str]:
    """Names of the directories that are published in `parent`."""
    entries = os.listdir(parent)
    named = {name for name in entries if name[0] != "." and is_published(parent / name)}
    hidden = {match["name"] for match in map(_HIDDEN.fullmatch, entries) if match}
    return named | {name for name in hidden if find(parent / name)}


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, nobody else's; removed at the end if it is still there.

    What killed processes left beside `path` is tidied up first.

    Raises:
        OSError: it cannot be made.
    """
    make_directories(path.parent)
    _tidy(path)
    directory, lock = _claim(path)
    try:
        yield directory
    finally:
        with suppress(OSError):
            remove(directory)
        os.close(lock)


def publish(directory: Path, path: Path) -> None:
    """Rename a complete `directory` to `path`, in the place of what is published there.

    Of several writers the last one wins. After an error the old one is still there, or,
    if only the last step failed, the new one.

    Raises:
        InvalidCheckpointError: something else is at `path`.
        OSError: it could not be renamed.
    """
    moved: list[Path] = []
    sync_directory(directory)
    try:
        while not _renamed(directory, path):
            refuse_foreign(path)
            moved.append(_sibling(path, "old"))
            with suppress(FileNotFoundError):  # another writer moved it
                os.rename(path, moved[-1])
    except BaseException:
        for old in reversed(moved):
            with suppress(OSError):
                os.rename(old, path)
        raise
    sync_directory(path.parent)
    for old in moved:
        try:
            remove(old)
        except OSError as exc:  # the new one is published: no reason to fail
            _log.warning("cannot remove %s, which was replaced: %s", old, exc)


def unpublish(path: Path) -> None:
    """Remove what is published as `path`.

    Raises:
        OSError: it cannot be removed; then it is still there, or gone by name.
    """
    for old in _moved(path):
        remove(old)
    if is_published(path):
        trash = _sibling(path, "tmp")
        os.rename(path, trash)
        sync_directory(path.parent)
        remove(trash)


def tidy(parent: Path, *, name: str | None = None) -> None:
    """Remove what killed processes left in a directory, and give back what they moved away.

    Args:
        parent: the directory in which they published.
        name: only what bore this name there; None for all.
    """
    for entry in sorted(os.listdir(parent)):
        match = _HIDDEN.fullmatch(entry)
        if match and name in (None, match["name"]):
            try:
                if match["kind"] == "tmp":
                    _remove_abandoned(parent / entry)
                else:
                    _settle(parent / entry, parent / match["name"])
            except OSError as exc:
                _log.warning("cannot tidy up %s: %s", parent / entry, exc)


def remove(directory: Path) -> None:
    """Remove a directory, its manifest first; of a link, the link."""
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        with suppress(FileNotFoundError):  # someone else is removing it too
            (directory / MANIFEST_FILE).unlink(missing_ok=True)
            sync_directory(directory)
            shutil.rmtree(directory)


def refuse_foreign(path: Path) -> None:
    """Refuse to replace anything but a published or an empty directory.

    Raises:
        InvalidCheckpointError: something else is at `path`.
    """
    if not os.path.lexists(path) or is_published(path):
        return
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        raise InvalidCheckpointError(
            f"{path} is there and is not a checkpoint; move it away or pass another path"
        )


def sync_directory(directory: Path) -> None:
    """Put a directory's names on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system that does not sync directories
            raise
    finally:
        os.close(descriptor)


def _renamed(directory: Path, path: Path) -> bool:
    try:
        os.rename(directory, path)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _sibling(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def _moved(path: Path) -> list[Path]:
    """Published directories that bore the name `path`, the newest last."""
    found: list[tuple[int, Path]] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.listdir(path.parent):
            match = _HIDDEN.fullmatch(entry)
            if match and match["kind"] == "old" and match["name"] == path.name:
                with suppress(FileNotFoundError, NotADirectoryError):
                    manifest = path.parent / entry / MANIFEST_FILE
                    found.append((manifest.stat().st_mtime_ns, manifest.parent))
    return [directory for _, directory in sorted(found)]


def _claim(path: Path) -> tuple[Path, int]:
    """Make a temporary directory and lock it: the lock says that its owner is alive."""
    while True:
        directory = _sibling(path, "tmp")
        directory.mkdir()
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # tidied up by another process before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:
            _log.debug("%s: no locks here, so leftovers stay", directory)
        if directory.exists():
            return directory, lock
        os.close(lock)


def _tidy(path: Path) -> None:
    """Remove what killed processes left beside `path`.

    Within a published directory that is what bore its name: there the processes of several hosts
    write at once, and not every file system has locks that reach from one to another.
    """
    tidy(path.parent, name=path.name if is_published(path.parent) else None)


def _remove_abandoned(directory: Path) -> None:
    # The process id in the name would not tell: in another container, or on another host of
    # a shared disk, it is another process. A lock goes with its owner.
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(directory)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _settle(old: Path, path: Path) -> None:
    """Remove a directory that was replaced; if nothing replaced it, give it its name again.

    Its mover may be alive: then it finds its name taken and moves it away once more.
    """
    if not is_published(old) or is_published(path):
        remove(old)
    elif not os.path.lexists(path) and _moved(path)[-1:] == [old]:
        with suppress(FileNotFoundError):
            os.rename(old, path)


def make_directories(directory: Path) -> None:
    """Make a directory and those above it; they are on the disk when this returns."""
    if not directory.is_dir():
        make_directories(directory.parent)
        with suppress(FileExistsError):
            directory.mkdir()
        sync_directory(directory.parent)
