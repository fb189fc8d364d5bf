"""From the scheme of a URI to the store behind it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from glm3sdk.adapters.offline import require_online
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.errors import Glm3Error, PluginError
from glm3sdk.hookspecs import RegisterBlobStore, RegisterCheckpointStore, hookimpl
from glm3sdk.plugins import missing, plugin_manager, registered
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.ports.checkpoint_store import CheckpointStore

LOCAL_SCHEME = "file"

_SCHEME = r"[a-z][a-z0-9+.-]*"
_URI = re.compile(rf"({_SCHEME})://", re.IGNORECASE)


@hookimpl
def glm3_register_blob_stores(register: RegisterBlobStore) -> None:
    """Register the blob stores that ship with the SDK, as any plugin would."""
    register(LOCAL_SCHEME, _local_blobs)
    for scheme in ("obs", "s3"):
        register(scheme, _obs_blobs)
    for scheme in ("https", "http"):
        register(scheme, _https_blobs)
    register("hf", _hub_blobs)


@hookimpl
def glm3_register_checkpoint_stores(register: RegisterCheckpointStore) -> None:
    """Register the checkpoint store of local disks."""
    register(LOCAL_SCHEME, LocalCheckpointStore)


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; "file" for a plain path."""
    found = _URI.match(uri)
    return found[1].lower() if found else LOCAL_SCHEME


def blob_store(uri: str) -> BlobStore:
    """A store for the blobs under a URI, or a plain path.

    Raises:
        UnknownNameError: nothing is registered for its scheme.
        PluginError: an installed plugin cannot be used.
        BackendUnavailableError: the scheme needs an extra that is not installed.
    """
    scheme, factories = scheme_of(uri), _blob_stores()
    if scheme not in factories:
        raise _missing(scheme, factories)
    return factories[scheme]()


def checkpoint_store(uri: str) -> CheckpointStore:
    """A store for the checkpoints under a URI, or a plain path.

    It is the checkpoint store that is registered for the scheme, or else files on its blob store.

    Raises:
        UnknownNameError: nothing is registered for its scheme.
        PluginError: an installed plugin cannot be used.
        BackendUnavailableError: the scheme needs an extra that is not installed.
    """
    scheme = scheme_of(uri)
    stores: dict[str, Callable[[], CheckpointStore]] = _of_schemes(
        "glm3_register_checkpoint_stores", "checkpoint store"
    )
    if scheme in stores:
        return stores[scheme]()
    blobs = _blob_stores()
    if scheme not in blobs:
        raise _missing(scheme, {*stores, *blobs})
    return BlobCheckpointStore(blobs[scheme]())


def has_blob_store(uri: str) -> bool:
    """Whether `blob_store` knows the scheme of a URI."""
    return scheme_of(uri) in _blob_stores()


def _blob_stores() -> dict[str, Callable[[], BlobStore]]:
    return _of_schemes("glm3_register_blob_stores", "blob store")


def _missing(scheme: str, known: Iterable[str]) -> Glm3Error:
    return missing(plugin_manager([sys.modules[__name__]]), "storage scheme", scheme, known)


def _of_schemes(hook: str, kind: str) -> dict[str, Callable[[], Any]]:
    factories = registered(plugin_manager([sys.modules[__name__]]), hook, kind)
    for scheme in factories:
        if not re.fullmatch(_SCHEME, scheme):
            raise PluginError(
                f"{kind} {scheme!r} is no scheme of URIs; register lower-case letters, digits, "
                "'+', '.' and '-', a letter first"
            )
    return factories


def _local_blobs() -> BlobStore:
    from glm3sdk.adapters.storage.local_blobs import LocalBlobStore

    return LocalBlobStore()


def _obs_blobs() -> BlobStore:
    from glm3sdk.adapters.storage.obs import ObsBlobStore

    require_online("an obs:// or s3:// URI")
    return ObsBlobStore()


def _https_blobs() -> BlobStore:
    from glm3sdk.adapters.storage.https import HttpsBlobStore

    return HttpsBlobStore()


def _hub_blobs() -> BlobStore:
    from glm3sdk.adapters.storage.hugging_face_hub import HubBlobStore

    return HubBlobStore()
