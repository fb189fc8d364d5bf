"""A scheme "memory://" for tests: blobs that live in a dictionary, registered as by a plugin."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glm3sdk.bootstrap import storage
from glm3sdk.hookspecs import hookimpl
from glm3sdk.plugins import plugin_manager
from glm3sdk.ports.blob_store import Blob, BlobStore


def register_blobs(
    patch: pytest.MonkeyPatch, factory: Callable[[], BlobStore], *, scheme: str = "memory"
) -> None:
    """Let a scheme lead to a store, as if a plugin were installed."""
    plugin = types.ModuleType("a_plugin_of_the_tests")
    plugin.glm3_register_blob_stores = hookimpl(  # type: ignore[attr-defined]  # a module's
        lambda register: register(scheme, factory), specname="glm3_register_blob_stores"
    )
    patch.setattr(
        storage,
        "plugin_manager",
        lambda builtins: plugin_manager([*builtins, plugin], discover=False),
    )


class PassingBlobs:
    """A store that tells of each change before and after it, and of what is read."""

    def __init__(self, blobs: BlobStore, tell: Callable[[str], None]) -> None:
        self.blobs, self.tell = blobs, tell
        self.bytes_read = 0
        self.reads: list[tuple[str, int, int]] = []

    def stat(self, uri: str) -> Blob | None:
        return self.blobs.stat(uri)

    def list(self, uri: str) -> Iterator[Blob]:
        return self.blobs.list(uri)

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        self.reads.append((blob.uri, start, stop))
        self.bytes_read += stop - start
        return self.blobs.read(blob, start, stop)

    def write(self, uri: str, source: bytes | Path) -> Blob:
        self.tell(f"before writing {uri}")
        blob = self.blobs.write(uri, source)
        self.tell(f"after writing {uri}")
        return blob

    def delete(self, uri: str) -> None:
        self.tell(f"before deleting {uri}")
        self.blobs.delete(uri)
        self.tell(f"after deleting {uri}")
