"""Which store a URI leads to."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from memory_storage import register_blobs

from glm3sdk._version import __version__
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.bootstrap import storage
from glm3sdk.bootstrap.storage import blob_store, checkpoint_store, has_blob_store, scheme_of
from glm3sdk.errors import PluginError, UnknownNameError
from glm3sdk.hookspecs import hookimpl
from glm3sdk.plugins import plugin_manager
from glm3sdk.testing import MemoryBlobStore, MemoryCheckpointStore


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("obs://bucket/key", "obs"),
        ("OBS://bucket/key", "obs"),
        ("file:///tmp/x", "file"),
        ("/tmp/x", "file"),
        ("runs/first", "file"),
        ("a:b", "file"),
        ("C:/x", "file"),
        ("", "file"),
    ],
)
def test_a_scheme_is_what_stands_before_two_slashes(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


def test_every_scheme_that_ships_has_its_store() -> None:
    kinds = {
        scheme: type(blob_store(f"{scheme}://x/y")).__name__
        for scheme in ("file", "obs", "s3", "https", "http", "hf")
    }
    assert kinds == {
        "file": "LocalBlobStore",
        "obs": "ObsBlobStore",
        "s3": "ObsBlobStore",
        "https": "HttpsBlobStore",
        "http": "HttpsBlobStore",
        "hf": "HubBlobStore",
    }
    assert isinstance(blob_store("some/path"), LocalBlobStore)
    assert isinstance(checkpoint_store("some/path"), LocalCheckpointStore)
    assert isinstance(checkpoint_store("file:///some/path"), LocalCheckpointStore)
    assert isinstance(checkpoint_store("obs://b/k"), BlobCheckpointStore)


def test_checkpoints_are_staged_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path))
    store = checkpoint_store("obs://b/k")
    assert isinstance(store, BlobCheckpointStore)
    assert store.staging == tmp_path / "staging"


def test_without_a_cache_folder_they_are_staged_where_only_this_user_may_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = checkpoint_store("obs://b/k").staging.parent
    assert first.parent == tmp_path
    assert first.stat().st_mode & 0o077 == 0
    assert checkpoint_store("obs://b/k").staging.parent == first
    first.chmod(0o777)  # as if somebody else had made it
    other = checkpoint_store("obs://b/k").staging.parent
    assert other != first
    assert other.stat().st_mode & 0o077 == 0


def test_a_scheme_of_a_plugin_leads_to_its_blobs_and_to_checkpoints_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blobs = MemoryBlobStore()
    register_blobs(monkeypatch, lambda: blobs)
    assert blob_store("memory://a") is blobs
    assert has_blob_store("memory://a")
    checkpoint_store("memory://a").create("memory://a/x").commit()
    assert checkpoint_store("memory://a").list("memory://a") == ("memory://a/x",)
    assert blobs.stat("memory://a/x/manifest.json")


def register(patch: pytest.MonkeyPatch, **hooks: object) -> None:
    plugin = types.ModuleType("a_plugin")
    for name, function in hooks.items():
        setattr(plugin, name, hookimpl(function, specname=name))
    patch.setattr(
        storage,
        "plugin_manager",
        lambda builtins: plugin_manager([*builtins, plugin], discover=False),
    )


def test_a_checkpoint_store_of_a_plugin_goes_before_its_blobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = MemoryCheckpointStore()
    register(
        monkeypatch,
        glm3_register_blob_stores=lambda register: register("mem", MemoryBlobStore),
        glm3_register_checkpoint_stores=lambda register: register("mem", lambda: mine),
    )
    assert checkpoint_store("mem://a") is mine
    assert isinstance(blob_store("mem://a"), MemoryBlobStore)


def test_a_plugin_may_have_checkpoints_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    register(
        monkeypatch,
        glm3_register_checkpoint_stores=lambda register: register("mem", MemoryCheckpointStore),
    )
    assert isinstance(checkpoint_store("mem://a"), MemoryCheckpointStore)
    assert not has_blob_store("mem://a")
    with pytest.raises(UnknownNameError, match="no storage scheme 'mem'"):
        blob_store("mem://a")


@pytest.mark.parametrize("find", [blob_store, checkpoint_store])
def test_an_unknown_scheme_names_the_known_ones_and_the_likeliest(find: object) -> None:
    with pytest.raises(UnknownNameError) as raised:
        find("http3://bucket/x")
    assert "no storage scheme 'http3' (known: file, hf, http, https, obs, s3)" in str(raised.value)
    assert "did you mean 'http'?" in str(raised.value)


def test_a_scheme_that_is_taken_is_an_error_that_names_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(
        monkeypatch, glm3_register_blob_stores=lambda register: register("obs", MemoryBlobStore)
    )
    with pytest.raises(PluginError, match="blob store 'obs' is registered twice") as raised:
        blob_store("file:///x")
    assert f"glm3sdk {__version__}" in str(raised.value)
    assert "a_plugin" in str(raised.value)


@pytest.mark.parametrize("scheme", ["Mine", "my scheme", "", "1st", "mine://"])
def test_what_cannot_be_a_scheme_is_refused(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    register(
        monkeypatch, glm3_register_blob_stores=lambda register: register(scheme, MemoryBlobStore)
    )
    with pytest.raises(PluginError, match="is no scheme of URIs"):
        blob_store("mine://a")
