"""The manifest of a checkpoint: what files it has, how long they are, and their sha256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.tensor_values import is_plain_name

MANIFEST_FILE = "manifest.json"
VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
_CHUNK = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class FileEntry:
    """A file's length in bytes and its sha256 in lower-case hexadecimal."""

    size: int
    sha256: str


@attrs.frozen
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        files: by their names.
        directory: the one beside the manifest that they lie in; "" where they lie beside it.
    """

    files: Mapping[str, FileEntry]
    directory: str = ""


def digest_file(path: Path) -> FileEntry:
    """Read a file to its end, a mebibyte at a time.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
            size += len(data)
    return FileEntry(size, digest.hexdigest())


def encode_manifest(files: Mapping[str, FileEntry], *, directory: str = "") -> bytes:
    """The bytes of manifest.json."""
    entries = {name: attrs.asdict(files[name]) for name in sorted(files)}
    placed = {"directory": directory} if directory else {}
    content = {"version": VERSION, **placed, "files": entries}
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a local directory.

    Raises:
        InvalidCheckpointError: it is not a manifest of this version.
        OSError: it cannot be read.
    """
    path = directory / MANIFEST_FILE
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: str | Path) -> Manifest:
    """Read the bytes of manifest.json, of which at most one more than `MAX_BYTES` were taken.

    Args:
        data: the bytes.
        path: where they came from, for messages.

    Raises:
        InvalidCheckpointError: it is not a manifest of this version.
    """
    if len(data) > MAX_BYTES:
        raise _invalid(path, f"is longer than {MAX_BYTES} bytes")
    try:
        content = json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as exc:
        raise _invalid(path, f"is not UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except (ValueError, RecursionError) as exc:
        raise _invalid(path, f"is not JSON ({exc})") from exc
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is int and version > VERSION:
        raise InvalidCheckpointError(
            f"{path} is of version {version}, and this glm3sdk reads version {VERSION}; upgrade it"
        )
    members = content.keys() - {"directory"} if isinstance(content, dict) else set()
    if type(version) is not int or version != VERSION or members != {"version", "files"}:
        raise _invalid(path, f"is not an object of a version ({VERSION}) and files")
    directory = content.get("directory", "")
    plain = isinstance(directory, str) and is_plain_name(directory)
    if "directory" in content and not plain:
        raise _invalid(path, f"names {directory!r}, which is not a directory beside it")
    return Manifest(_parse_files(path, content["files"]), directory)


def _parse_files(path: str | Path, content: Any) -> dict[str, FileEntry]:
    if not isinstance(content, dict):
        raise _invalid(path, "names no files")
    files = {}
    for name, entry in content.items():
        if not is_plain_name(name) or name == MANIFEST_FILE:
            raise _invalid(path, f"names {name!r}, which is not a file beside it")
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise _invalid(path, f"does not give the size and the sha256 of {name!r}")
        size, sha256 = entry["size"], entry["sha256"]
        if type(size) is not int or size < 0:
            raise _invalid(path, f"gives {name!r} the size {size!r}")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise _invalid(path, f"gives {name!r} the sha256 {sha256!r}")
        files[name] = FileEntry(size, sha256)
    return files


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def _invalid(path: str | Path, what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(f"{path} {what}; use another checkpoint or write it again")
