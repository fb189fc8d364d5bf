"""The files of a sharded checkpoint: DIRECTORY/rank_N/FILE, one file a rank."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.adapters.storage.local_checkpoint import reading
from glm3sdk.adapters.storage.tensor_file import DIGEST_SUFFIX, SUFFIXES
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import InvalidCheckpointError, UnsafeCheckpointError

_RANK = re.compile(r"rank_(0|[1-9]\d{0,6})")
_NAMED = 5
_MOST_OF_A_SUM = 1024  # bytes: 64 digits and a file's name


def find_rank_files(directory: Path) -> tuple[Path, ...]:
    """Every rank's file, in the order of the ranks.

    Raises:
        InvalidCheckpointError: no ranks, one that is missing between others, or a rank that has
            no file or several; the message names it and what was found.
        UnsafeCheckpointError: a link leads out of the directory.
    """
    with reading(directory):
        matches = map(_RANK.fullmatch, os.listdir(directory))
        ranks = sorted(int(match[1]) for match in matches if match)
        if not ranks:
            raise InvalidCheckpointError(
                f"{directory} holds no rank_0, rank_1, ...; pass the directory that does"
            )
        missing = next(rank for rank in range(len(ranks) + 1) if rank not in set(ranks))
        if missing < len(ranks):
            raise InvalidCheckpointError(
                f"{directory} has rank_{ranks[-1]} and lacks rank_{missing}; bring the files of "
                "all ranks together"
            )
        root = directory.resolve()
        return tuple(_file_of(directory, root, rank) for rank in ranks)


def require_absent(path: Path) -> None:
    """Check that there is nothing at a path, or an empty directory.

    Raises:
        InvalidCheckpointError: there is something.
    """
    with reading(path):
        if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise InvalidCheckpointError(
                f"{path} is there already; move it away or pass another path"
            )


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A hidden directory that becomes `path`, if the block ends without an error.

    Raises:
        InvalidCheckpointError: something is there.
        CheckpointWriteError: it cannot be written there.
    """
    require_absent(path)
    with _hidden(path) as directory:
        yield directory
        with writing(path):
            for child in directory.iterdir():
                whole_directory.sync_directory(child)
            whole_directory.sync_directory(directory)
            require_absent(path)
            os.rename(directory, path)
            whole_directory.sync_directory(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write a file, with its sha256 beside it; both appear if the block ends well.

    A sum that a killed writer left without its file is replaced.

    Raises:
        InvalidCheckpointError: something is there.
        CheckpointWriteError: it cannot be written there.
    """
    beside = path.with_name(path.name + DIGEST_SUFFIX)
    for target in (path, beside):
        if os.path.lexists(target) and not (target is beside and _is_sum_of(path, beside)):
            raise InvalidCheckpointError(
                f"{target} is there already; move it away or pass another path"
            )
    with _hidden(path) as directory:
        yield directory / path.name
        with writing(path):
            require_absent(path)
            # The sum first: where the file is seen, it can be checked.
            os.rename(directory / beside.name, beside)
            try:
                os.rename(directory / path.name, path)
            except BaseException:
                with suppress(OSError):
                    beside.unlink()
                raise
            whole_directory.sync_directory(path.parent)


def _is_sum_of(path: Path, beside: Path) -> bool:
    """Whether a file is what `new_file` puts beside another."""
    try:
        with beside.open("rb") as file:
            line = file.read(_MOST_OF_A_SUM)
    except OSError:
        return False
    return (
        re.fullmatch(rb"[0-9a-f]{64}  " + re.escape(os.fsencode(path.name)) + rb"\n", line)
        is not None
    )


@contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        with writing(path):
            directory = stack.enter_context(whole_directory.temporary(path))
        yield directory


def _file_of(directory: Path, root: Path, rank: int) -> Path:
    folder = directory / f"rank_{rank}"
    _require_inside(folder, root)
    if not folder.is_dir():
        raise InvalidCheckpointError(f"{folder} is not a directory; put the rank's file into one")
    found = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix in SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    )
    if len(found) != 1:
        names = f": {', '.join(found[:_NAMED])}" if found else ""
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InvalidCheckpointError(
            f"rank {rank} has {len(found)} checkpoint files in {folder}{names}{more}; "
            "leave exactly one .ckpt or .safetensors file a rank"
        )
    file = folder / found[0]
    _require_inside(file, root)
    if not file.is_file():
        raise InvalidCheckpointError(f"{file} is not a plain file; put a copy there")
    return file


def _require_inside(path: Path, root: Path) -> None:
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise UnsafeCheckpointError(
            f"{path} is a link to {resolved}, outside of {root}; put the file itself there"
        )
