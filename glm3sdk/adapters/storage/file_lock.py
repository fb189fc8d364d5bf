"""Files as locks between processes: a lock goes with its holder, however that ends."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)


def take_lock(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Lock a file, which is made where there is none.

    The holder of a lock that is not shared may remove or rename the file: who waited for it
    begins anew with the one that is there then.

    Args:
        path: the file, in a directory that exists.
        shared: others may hold it too, as long as they share it.
        wait: wait until it is free.

    Returns:
        A descriptor, open for reading and writing: closing it gives the lock back. None where
        another one holds it and `wait` is false.

    Raises:
        OSError: the file cannot be made or opened.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        kept = False
        try:
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                return None
            except OSError as exc:
                _log.debug("%s: no locks here (%s), so only one process may work here", path, exc)
            kept = is_file_at(descriptor, path)
            if kept:
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)


def lock_directory(path: Path) -> int | None:
    """Lock a directory itself, so that no file is needed in it.

    Returns:
        A descriptor, as of `take_lock`; None where another one holds the lock.

    Raises:
        OSError: the directory cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as exc:
        _log.debug("%s: no locks here (%s), so only one process may work here", path, exc)
    return descriptor


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still bears the name `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    return False
