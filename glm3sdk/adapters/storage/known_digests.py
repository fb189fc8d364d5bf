"""What the sha256 of a file must be, where something says so."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from glm3sdk.adapters.storage.manifest import MANIFEST_FILE, FileEntry
from glm3sdk.adapters.storage.tensor_file import DIGEST_SUFFIX
from glm3sdk.domain.published_models import PUBLISHED_MODELS
from glm3sdk.errors import InvalidCheckpointError

_SHA256 = re.compile(r"[0-9a-f]{64}")
# As sha256sum writes it: the sum, a space, a space or an asterisk, the name.
_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_MAX_LINES_BYTES = 64 * 1024


@attrs.frozen
class KnownDigest:
    """What a file must be.

    Attributes:
        sha256: in lower-case hexadecimal.
        source: who says so, such as "manifest.json".
        size: bytes, where that is known too.
    """

    sha256: str
    source: str
    size: int | None = None


def known_digest(file: Path, entry: FileEntry | None = None) -> KnownDigest | None:
    """Look for a file's sha256.

    In this order: a manifest's entry; FILE.sha256 beside it; a file of a published model, by
    name and size; the name of what a link leads to in Hugging Face's cache.

    Args:
        file: which may be missing.
        entry: the manifest's, if there is one.

    Raises:
        InvalidCheckpointError: FILE.sha256 does not give this file's sum.
    """
    if entry is not None:
        return KnownDigest(entry.sha256, MANIFEST_FILE, entry.size)
    beside = file.with_name(file.name + DIGEST_SUFFIX)
    if beside.is_file():
        return KnownDigest(_sum_of(file.name, beside), beside.name)
    size = file.stat().st_size if file.is_file() else None
    for model in PUBLISHED_MODELS.values():
        published = model.files.get(file.name)
        if published is not None and published.size == size:
            return KnownDigest(published.sha256, f"what is known of {model.name}", size)
    target = file.resolve().name
    # Only large files are kept under their sha256; others go by a shorter sum of git's.
    if file.is_symlink() and _SHA256.fullmatch(target):
        return KnownDigest(target, "its name in the cache")
    return None


def _sum_of(name: str, beside: Path) -> str:
    try:
        with beside.open("rb") as file:
            lines = file.read(_MAX_LINES_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidCheckpointError(f"{beside} cannot be read: {exc}; remove it") from exc
    for line in lines:
        match = _LINE.fullmatch(line)
        if match and match["name"] == name:
            return match["sha256"].lower()
    raise InvalidCheckpointError(
        f"{beside} does not give the sha256 of {name}; write it again with sha256sum"
    )
