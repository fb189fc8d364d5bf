"""Whether a file is what was written, as far as anything tells."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from glm3sdk.adapters.storage.directory_files import read_json
from glm3sdk.adapters.storage.known_digests import KnownDigest
from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile
from glm3sdk.adapters.storage.stored_model import open_tensors
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.errors import InvalidCheckpointError

_CHUNK_BYTES = 4 * 1024 * 1024

OnBytes = Callable[[int], None]


def check_file(file: Path, digest: KnownDigest | None, on_bytes: OnBytes) -> tuple[str, ...]:
    """Compare a file with its digest and its own checksums, and read its structure.

    Args:
        file: which may be missing.
        digest: what it must be, where that is known.
        on_bytes: told how many bytes are done; all of the file's where this returns.

    Returns:
        What it was compared with; nothing where there is nothing.

    Raises:
        InvalidCheckpointError: it is missing, differs, or cannot be read.
    """
    try:
        size = file.stat().st_size
        if digest is not None:
            check_digest(file, digest, on_bytes)
        own = _own_checksums(file)
    except OSError as exc:
        raise InvalidCheckpointError(
            f"{file} cannot be read: {exc.strerror or exc}; use another copy"
        ) from exc
    if digest is None:
        on_bytes(size)
        return own
    return (f"sha256 of {digest.source}", *own)


def check_digest(file: Path, digest: KnownDigest, on_bytes: OnBytes) -> None:
    """Compare a file with what it must be.

    Args:
        file: which is there.
        digest: what it must be.
        on_bytes: told how many bytes are done.

    Raises:
        InvalidCheckpointError: it differs.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    if digest.size not in (None, size):
        raise InvalidCheckpointError(
            f"{file} has {size} bytes and {digest.source} says {digest.size}; use another copy"
        )
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while data := opened.read(_CHUNK_BYTES):
            found.update(data)
            on_bytes(len(data))
    if found.hexdigest() != digest.sha256:
        raise InvalidCheckpointError(
            f"{file} is not what was written: its sha256 is {found.hexdigest()} and "
            f"{digest.source} says {digest.sha256}; use another copy"
        )


def _own_checksums(file: Path) -> tuple[str, ...]:
    """Read the structure of a file, and compare it with the checksums that are in it."""
    if file.suffix == ".json":
        read_json(file, InvalidCheckpointError)
        return ()
    tensors = open_tensors(file)
    if isinstance(tensors, MindSporeCkptFile) and tensors.verify():
        return ("its CRC-32",)
    if isinstance(tensors, TorchBinFile) and _verify_zip(file):
        return ("its CRC-32s",)
    return ()


def _verify_zip(file: Path) -> bool:
    """Compare a zip file's members with their CRC-32s; whether all of them have one."""
    complete = True
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.file_size and not entry.CRC:  # torch can be told to take none
                    complete = False
                    continue
                with archive.open(entry) as member:
                    while member.read(_CHUNK_BYTES):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as exc:
        raise InvalidCheckpointError(f"{file} is damaged ({exc}); download it again") from exc
    return complete
