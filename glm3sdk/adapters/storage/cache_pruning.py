"""Removing from a model cache what is not needed, and nothing that someone uses.

A process that uses a blob or a revision shares its lock, so what is removed is removed under
the lock held alone, and whether it is needed is asked again under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.adapters.storage.cache_layout import (
    CachedModel,
    CacheLayout,
    entries,
    is_digest,
    read_json,
)
from glm3sdk.adapters.storage.manifest import read_manifest
from glm3sdk.adapters.storage.transfer import INCOMPLETE, JOURNAL
from glm3sdk.errors import InvalidCheckpointError


@attrs.frozen
class Pruned:
    """What was pruned.

    Attributes:
        freed: bytes.
        in_use: keys that were kept because another process uses them.
    """

    freed: int
    in_use: tuple[str, ...]


def prune(layout: CacheLayout, models: Iterable[CachedModel]) -> Pruned:
    """Forget models, then remove every file that no key needs.

    Killed at any point, it leaves the rest for the next time.
    """
    in_use = [model.key for model in models if not _forget(layout, model)]
    _forget_damaged(layout)
    freed = _remove_revisions(layout) + _remove_blobs(layout) + _remove_incoming(layout)
    for origin in entries(layout.origins):
        sha256 = read_json(origin).get("sha256")
        if not is_digest(sha256) or not (layout.blobs / str(sha256)).exists():
            layout.remove_json(origin)
    layout.remove_idle_locks()
    return Pruned(freed, tuple(in_use))


def _forget(layout: CacheLayout, model: CachedModel) -> bool:
    with layout.if_free(model.revision) as free:
        if free:
            for ref in entries(layout.refs):
                if read_json(ref).get("key") == model.key:
                    layout.remove_json(ref)
        return free


def _forget_damaged(layout: CacheLayout) -> None:
    for ref in entries(layout.refs):
        revision = read_json(ref).get("revision")
        if not is_digest(revision):
            layout.remove_json(ref)
            continue
        with layout.if_free(str(revision)) as free:
            if free and layout.model(ref) is None:
                layout.remove_json(ref)


def _remove_revisions(layout: CacheLayout) -> int:
    with whole_directory.temporary(layout.models / "prune"):
        pass  # which tidies up what killed processes left there
    freed = 0
    for revision in sorted(filter(is_digest, whole_directory.published_names(layout.models))):
        with layout.if_free(revision) as free:
            wanted = {read_json(ref).get("revision") for ref in entries(layout.refs)}
            if free and revision not in wanted:
                directory = layout.models / revision
                freed += sum(map(_freed_by, entries(directory)))
                whole_directory.unpublish(directory)
    return freed


def _remove_blobs(layout: CacheLayout) -> int:
    freed = 0
    for sha256 in _stems(layout.blobs):
        with layout.if_free(sha256) as free:
            if free:
                freed += _remove_unfinished(layout.blobs / sha256)
                if sha256 not in _used(layout):
                    freed += _remove(layout.blobs / sha256)
    return freed


def _remove_incoming(layout: CacheLayout) -> int:
    freed = 0
    for name in _stems(layout.incoming):
        with layout.if_free(name) as free:
            if free:
                place = layout.incoming / name
                freed += _remove_unfinished(place) + _remove(place)
    return freed


def _stems(directory: Path) -> list[str]:
    return sorted({path.name.split(".")[0] for path in entries(directory)} - {""})


def _used(layout: CacheLayout) -> set[str]:
    """Blobs that a published model has."""
    used: set[str] = set()
    for revision in whole_directory.published_names(layout.models):
        with suppress(InvalidCheckpointError, OSError):
            used |= {
                entry.sha256 for entry in read_manifest(layout.models / revision).files.values()
            }
    return used


def _remove_unfinished(path: Path) -> int:
    return sum(_remove(path.with_name(path.name + suffix)) for suffix in (JOURNAL, INCOMPLETE))


def _remove(path: Path) -> int:
    if not path.is_file():
        return 0
    freed = _freed_by(path)
    path.unlink()
    return freed


def _freed_by(path: Path) -> int:
    """Bytes that removing a file frees: none as long as it has another name."""
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 else 0
