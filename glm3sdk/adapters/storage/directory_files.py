"""Files of a model's directory; nothing outside of it is ever opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glm3sdk.errors import Glm3Error


def member(directory: Path, name: str, error: type[Glm3Error]) -> Path:
    """The path of a file of a directory; a name or a link that leads out is refused.

    Raises:
        error: nothing of the directory can go by that name.
    """
    if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
        raise error(f"{directory}: {name!r} is not a plain file name; nothing else is opened")
    file = directory / name
    try:
        target, home = file.resolve(), directory.resolve()
    except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of links
        raise error(f"{file} cannot be followed: {exc}") from exc
    # The Hugging Face cache keeps the bytes in models--NAME/blobs and links to them
    # from models--NAME/snapshots/REVISION.
    cache = next((p for p in home.parents if p.name.startswith("models--")), home)
    if not target.is_relative_to(cache):
        raise error(f"{file} is a link out of its directory, to {target}; put a copy there")
    return file


def read_json(file: Path, error: type[Glm3Error]) -> Any:
    """The value in a JSON file, with a byte order mark or without.

    Raises:
        error: it cannot be read or is not JSON.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except OSError as exc:
        raise error(f"{file} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise error(f"{file} is not UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{file} is not JSON: {exc}; download it again") from exc


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name!r:.100} is there twice")
        content[name] = value
    return content
