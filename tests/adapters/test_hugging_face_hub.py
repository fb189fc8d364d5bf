from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.hub_double import Hub, git_id, running_hub

from glm3sdk.adapters.storage.hugging_face_hub import HubBlobStore
from glm3sdk.errors import (
    BackendUnavailableError,
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    OfflineError,
    TransferError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_store import Blob

REPOSITORY = "THUDM/chatglm3-6b"
URI = f"hf://{REPOSITORY}"
WEIGHTS = bytes(range(256)) * 16
FILES = {
    "config.json": b'{"model_type": "chatglm"}',
    "model.safetensors": WEIGHTS,
    "sub/x.txt": b"x",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    server.repositories.clear()
    server.requests.clear()
    server.failures.clear()
    server.repository(REPOSITORY).push(FILES)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GLM3SDK_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    return server


def whole(store: HubBlobStore, blob: Blob | None) -> bytes:
    assert blob is not None
    return store.read(blob, 0, blob.size)


def test_files_have_their_size_version_and_digest(hub: Hub):
    store = HubBlobStore()
    weights, config = store.stat(f"{URI}/model.safetensors"), store.stat(f"{URI}/config.json")
    assert weights == Blob(
        f"{URI}/model.safetensors",
        len(WEIGHTS),
        version=git_id(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )
    data = FILES["config.json"]
    assert config == Blob(f"{URI}/config.json", len(data), version=git_id(data))
    assert store.stat(f"{URI}/nothing.json") is None
    assert [blob.uri for blob in store.list(URI)] == [f"{URI}/{name}" for name in sorted(FILES)]
    assert [blob.uri for blob in store.list(f"{URI}/sub/")] == [f"{URI}/sub/x.txt"]
    assert hub.requests == [f"GET /api/models/{REPOSITORY}"]


def test_bytes_come_from_the_hub_or_from_where_it_redirects_to(hub: Hub):
    store = HubBlobStore()
    blob = store.stat(f"{URI}/model.safetensors")
    assert blob is not None
    assert store.read(blob, 10, 300) == WEIGHTS[10:300]
    assert store.read(blob, 5, 5) == b""
    assert any(line.startswith("CDN") for line in hub.requests)
    assert whole(store, store.stat(f"{URI}/config.json")) == FILES["config.json"]
    assert whole(store, store.stat(f"{URI}/sub/x.txt")) == b"x"
    with pytest.raises(TransferError, match=r"4096 bytes.*\[0, 4097\)"):
        store.read(blob, 0, 4097)


def test_the_token_opens_a_private_repository_and_stays_with_the_hub(hub: Hub):
    hub.repository(REPOSITORY).private = True
    store = HubBlobStore(token=hub.token)
    # `running_hub` fails at its end if the CDN saw it.
    assert whole(store, store.stat(f"{URI}/model.safetensors")) == WEIGHTS
    assert not hub.leaked


def test_the_token_of_the_environment_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.repository(REPOSITORY).private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert HubBlobStore().stat(f"{URI}/config.json") is not None


def test_a_repository_that_moved_is_followed(hub: Hub):
    hub.repositories["zai-org/chatglm3-6b"] = hub.repositories.pop(REPOSITORY)
    hub.repository(REPOSITORY).moved_to = "zai-org/chatglm3-6b"
    hub.repository("zai-org/chatglm3-6b").private = True
    store = HubBlobStore(token=hub.token)
    assert whole(store, store.stat(f"{URI}/model.safetensors")) == WEIGHTS


def test_a_push_midway_does_not_mix_two_editions(hub: Hub):
    store = HubBlobStore()
    blob = store.stat(f"{URI}/model.safetensors")
    hub.repository(REPOSITORY).push({**FILES, "model.safetensors": WEIGHTS[::-1]})
    assert whole(store, blob) == WEIGHTS
    with pytest.raises(BlobChangedError, match=r"model\.safetensors was replaced"):
        whole(HubBlobStore(), blob)


@pytest.mark.parametrize("revision", ["old", "refs%2Fpr%2F1", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, revision: str):
    old = hub.repository(REPOSITORY).push({"config.json": b"old"}, branch="old")
    hub.repository(REPOSITORY).branches["refs/pr/1"] = old
    uri = f"{URI}@{old if revision == 'commit' else revision}/config.json"
    store = HubBlobStore()
    assert whole(store, store.stat(uri)) == b"old"
    assert whole(store, store.stat(f"{URI}/config.json")) == FILES["config.json"]


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_a_repository_that_may_not_be_seen_says_what_to_do(hub: Hub, token: str):
    remedy = "use another token" if token else "hf auth login"
    hub.repository(REPOSITORY).private = True
    for uri in (f"{URI}/config.json", "hf://no/such/config.json"):
        with pytest.raises(BlobAccessError, match=remedy) as raised:
            HubBlobStore(token=token).stat(uri)
        assert "has no repository" in str(raised.value)


def test_a_gated_repository_says_what_to_do(hub: Hub):
    hub.repository(REPOSITORY).gated = True
    store = HubBlobStore()
    with pytest.raises(BlobAccessError, match=f"see whether {hub.endpoint}/{REPOSITORY} exists"):
        whole(store, store.stat(f"{URI}/model.safetensors"))


def test_an_unknown_revision_is_named(hub: Hub):
    with pytest.raises(BlobAccessError, match="has no revision 'v9'"):
        HubBlobStore().stat(f"{URI}@v9/config.json")


@pytest.mark.parametrize(
    "uri", ["hf://x", "hf:///a/b", "hf://a/b@/c", "hf://a--b/c/x", "hf://a b/c"]
)
def test_what_is_no_repository_is_refused(hub: Hub, uri: str):
    with pytest.raises(BlobAccessError, match="is no"):
        HubBlobStore().stat(uri)


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, BlobUnavailableError), (429, BlobUnavailableError), (403, BlobAccessError)],
)
def test_a_failure_tells_whether_to_try_again(hub: Hub, status: int, error: type[Exception]):
    hub.failures = [status]
    store = HubBlobStore()
    with pytest.raises(error, match=str(status)):
        store.stat(f"{URI}/config.json")
    assert store.stat(f"{URI}/config.json") is not None


def test_a_hub_that_is_not_there_is_unavailable(hub: Hub):
    with pytest.raises(BlobUnavailableError, match=r"did not answer.*HF_ENDPOINT"):
        HubBlobStore(endpoint="http://127.0.0.1:9").stat(f"{URI}/config.json")


@pytest.mark.parametrize("endpoint", ["http://mirror.example", "http://127.0.0.1.example", "x"])
def test_a_token_is_not_sent_in_the_open(endpoint: str):
    with pytest.raises(BlobAccessError, match="is not encrypted"):
        HubBlobStore(endpoint=endpoint, token="hf_secret")


@pytest.mark.parametrize("name", ["GLM3SDK_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_offline_switch_makes_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "1")
    with pytest.raises(OfflineError, match=f"{name}=1"):
        HubBlobStore().stat(f"{URI}/config.json")
    assert hub.requests == []


def test_nothing_is_written_to_the_hub(hub: Hub):
    store = HubBlobStore()
    with pytest.raises(UnsupportedOptionError, match="nothing is written"):
        store.write(f"{URI}/x", b"")
    with pytest.raises(UnsupportedOptionError, match="nothing is deleted"):
        store.delete(f"{URI}/x")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailableError, match=r"glm3sdk\[hub\]"):
        HubBlobStore()


def test_the_hubs_own_client_reads_the_double_as_we_do(hub: Hub, tmp_path: Path):
    import huggingface_hub

    hub.repository(REPOSITORY).private = True
    for name in ("config.json", "model.safetensors"):
        path = huggingface_hub.hf_hub_download(
            REPOSITORY, name, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path
        )
        assert Path(path).read_bytes() == FILES[name]
        blob = HubBlobStore(token=hub.token).stat(f"{URI}/{name}")
        # Its cache calls a file by its ETag: the sha256 of a large file, git's id of a small one.
        assert blob is not None
        assert Path(path).resolve().name == (blob.sha256 or blob.version)
