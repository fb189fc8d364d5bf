"""Where things are kept between processes: compiled graphs, downloaded models."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

FOLDER_VARIABLE = "GLM3SDK_CACHE_DIR"


def cache_folder() -> Path | None:
    """`GLM3SDK_CACHE_DIR` (empty: nowhere), or glm3sdk in the user's cache folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen == "":
        return None
    try:
        root = chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "glm3sdk")
    except RuntimeError:  # no home
        return None
    return Path(root).absolute()


def scratch_folder() -> Path:
    """Where unfinished work lies: the cache folder, or else one of this user's temporary files."""
    if (folder := cache_folder()) is not None:
        return folder
    user = os.getuid()
    folder = Path(tempfile.gettempdir(), f"glm3sdk-{user}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Anybody may have made it: only what nobody else can write to is used.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="glm3sdk-"))
