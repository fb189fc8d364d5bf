"""Files of tensors, read and written as what their names end in says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from glm3sdk.adapters.storage.manifest import FileEntry, digest_file
from glm3sdk.adapters.storage.mindspore_ckpt import (
    CKPT_SUFFIX,
    MindSporeCkptFile,
    write_mindspore_ckpt,
)
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs, write_safetensors
from glm3sdk.adapters.storage.staged_writer import write_through
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.ports.tensor_values import TENSOR_SUFFIX

SUFFIXES = (CKPT_SUFFIX, TENSOR_SUFFIX)
DIGEST_SUFFIX = ".sha256"


def require_suffix(path: Path) -> None:
    """Check that a file's name says its format.

    Raises:
        InvalidCheckpointError: it does not.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidCheckpointError(
            f"{path} is neither a .ckpt nor a .safetensors file; pass a name that ends in one "
            "of them"
        )


def open_tensor_file(path: Path) -> CheckpointReader:
    """Open a `.ckpt` or a `.safetensors` file.

    Raises:
        InvalidCheckpointError: another kind of file, none, or a damaged one.
    """
    require_suffix(path)
    if path.suffix == CKPT_SUFFIX:
        return MindSporeCkptFile(path)
    files = TensorFiles(path)
    files.add(path, read_specs(path))
    return files


def write_tensor_file(
    path: Path, tensors: CheckpointReader, *, on_bytes: Callable[[int], None]
) -> FileEntry:
    """Write all of a reader's tensors, read the file back, and put its sha256 beside it.

    The sum is in PATH.sha256, as `sha256sum --check` reads it. One tensor is in memory while
    the next one is read.

    Args:
        path: where there is no file yet, ending in .ckpt or .safetensors.
        tensors: what to write.
        on_bytes: told each tensor's bytes when it has been read.

    Returns:
        The file's length and sha256.

    Raises:
        InvalidCheckpointError: a tensor cannot be read, or not be stored in the format.
        CheckpointWriteError: no room, no permission, or the disk gives other bytes back.
    """
    specs = tensors.tensors
    names = list(specs)
    if path.suffix == TENSOR_SUFFIX:  # the order of the file: then it is hashed on the way
        names.sort(key=lambda name: (-numpy_dtype(specs[name].dtype).itemsize, name))

    def values() -> Iterator[tuple[str, HostArray]]:
        for name in names:
            value = tensors.read(name)
            on_bytes(value.nbytes)
            yield name, value

    write = write_mindspore_ckpt if path.suffix == CKPT_SUFFIX else write_safetensors
    entry = write(path, specs, values())
    with writing(path):
        forget_pages(path)
        found = digest_file(path)
    if found != entry or open_tensor_file(path).tensors != specs:
        with suppress(OSError):
            path.unlink()
        raise CheckpointWriteError(
            f"{path} is not what was written: its sha256 is {found.sha256}, and what was written "
            f"has {entry.sha256}; see whether the disk is sound"
        )
    line = f"{entry.sha256}  {path.name}\n"
    write_through(path.with_name(path.name + DIGEST_SUFFIX), line.encode())
    return entry


def forget_pages(path: Path) -> None:
    """Drop what the system holds of a file in memory, so that it is read from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
