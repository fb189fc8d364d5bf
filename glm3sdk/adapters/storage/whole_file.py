"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from glm3sdk.errors import Glm3Error, UserError

_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def tidy_parts(directory: Path, names: Container[str]) -> None:
    """Remove what writers of some files left in a directory when they were killed.

    A writer that is alive fails; so nobody else may be writing them.
    """
    for entry in os.listdir(directory):
        if (match := _PART.fullmatch(entry)) and match["name"] in names:
            (directory / entry).unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place and put it there when the block ends without an error.

    Until then, and after any error, whatever was at `path` stays as it was.

    Args:
        path: where the file will be; its directory must exist.

    Raises:
        UserError: nothing can be written there.
        Glm3Error: writing failed, for instance because the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; pass the path of a file")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = unfinished.open("xb")
    except OSError as exc:
        raise UserError(
            f"cannot write {path}: {exc.strerror}; pass a path in a directory that you may write to"
        ) from exc
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as exc:
        raise Glm3Error(f"cannot write {path}: {exc.strerror or exc}; nothing was left") from exc
    finally:
        unfinished.unlink(missing_ok=True)
