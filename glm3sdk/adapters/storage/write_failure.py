"""What the system says when it cannot write, as an error with a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from glm3sdk.errors import CheckpointWriteError

_REMEDIES = {
    errno.ENOSPC: "free some space there or write elsewhere",
    errno.EDQUOT: "free some of your quota or write elsewhere",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or write more, smaller files",
    errno.EACCES: "ask for permission to write there or write elsewhere",
    errno.EPERM: "ask for permission to write there or write elsewhere",
    errno.EROFS: "mount it for writing or write elsewhere",
    errno.ENAMETOOLONG: "pass a shorter name",
    errno.EEXIST: "move what is there away",
    errno.ENOTDIR: "a file is in the place of a directory; pass another path",
}


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointWriteError that names the path.

    Raises:
        CheckpointWriteError: the block could not write; the message has the remedy.
    """
    try:
        yield
    except OSError as exc:
        remedy = _REMEDIES.get(exc.errno or 0, "see whether the disk is sound")
        reason = exc.strerror or exc
        raise CheckpointWriteError(f"cannot write {os.fspath(path)}: {reason}; {remedy}") from exc


@contextmanager
def closing(file: BinaryIO) -> Iterator[None]:
    """Close a file at the end of the block.

    Closing writes what is still in the file's buffer. Where the block failed, that fails for the
    same reason and would hide the first error.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    file.close()
