from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.published_models import PUBLISHED_MODELS, PublishedFile, PublishedModel
from glm3sdk.errors import (
    BlobAccessError,
    InvalidCheckpointError,
    InvalidConfigError,
    UnsafeCheckpointError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_store import Blob
from glm3sdk.services.model_source import Digests, SourceManifest, SourceModel, find_model
from glm3sdk.testing.memory_blobs import MemoryBlobStore

URI = "memory://models/one"
SMALL = Glm3Config(
    num_layers=1,
    hidden_size=8,
    ffn_hidden_size=8,
    num_attention_heads=2,
    kv_channels=4,
    multi_query_group_num=1,
    padded_vocab_size=64,
)
TENSORS = list(SMALL.tensor_shapes())


def a_model(*, shards: int = 0, bin: bool = False) -> dict[str, bytes]:
    """Files that look like a model's from outside; 0 shards is one file without an index."""
    single, index, start, end = (
        ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model", "bin")
        if bin
        else ("model.safetensors", "model.safetensors.index.json", "model", "safetensors")
    )
    files = {
        "config.json": json.dumps(SMALL.to_hugging_face()).encode(),
        "tokenizer.model": b"pieces",
    }
    if not shards:
        return {**files, single: b"weights"}
    names = [f"{start}-{i + 1:05}-of-{shards:05}.{end}" for i in range(shards)]
    placed = {tensor: names[i % shards] for i, tensor in enumerate(TENSORS)}
    files[index] = json.dumps({"weight_map": placed}).encode()
    return {**files, **{name: name.encode() for name in names}}


def entries(files: Mapping[str, bytes]) -> dict[str, PublishedFile]:
    return {
        name: PublishedFile(len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }


def no_manifest(data: bytes, uri: str) -> SourceManifest:
    raise AssertionError(f"{uri} was read as a manifest")


class Forgetful(MemoryBlobStore):
    """Knows no digests; with `lists` off it cannot list, as a web server."""

    lists = True

    def stat(self, uri: str) -> Blob | None:
        blob = super().stat(uri)
        return blob and attrs.evolve(blob, sha256=None)

    def list(self, uri: str):
        if not self.lists:
            raise UnsupportedOptionError("a web server cannot list")
        return super().list(uri)


def stored(files: Mapping[str, bytes], uri: str = URI, store: Any = None) -> Any:
    store = Forgetful() if store is None else store
    for name, data in files.items():
        store.write(f"{uri}/{name}", data)
    return store


def found(store: Any, uri: str = URI, **options: Any) -> SourceModel:
    return find_model(store, uri, **{"read_manifest": no_manifest, **options})


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("bin", [False, True])
def test_files_are_found_without_listing(shards: int, bin: bool):
    files = a_model(shards=shards, bin=bin)
    store = stored({**files, "tokenizer_config.json": b"{}", "README.md": b"no", "x.py": b"no"})
    store.lists = False
    model = found(store)
    assert [file.name for file in model.files] == sorted([*files, "tokenizer_config.json"])
    assert model.size == sum(map(len, files.values())) + 2
    assert model.digests is Digests.NONE
    assert {file.sha256 for file in model.files} == {None}


def test_digests_that_the_store_knows_are_taken():
    model = found(stored(a_model(), store=MemoryBlobStore()))
    assert model.digests is Digests.SOURCE
    assert {f.name: f.sha256 for f in model.files}["tokenizer.model"] == (
        hashlib.sha256(b"pieces").hexdigest()
    )


def test_a_manifest_says_which_files_there_are_and_what_they_must_be():
    files = a_model(shards=2)
    store = stored({**files, "optimizer.safetensors": b"large", "manifest.json": b"the manifest"})
    store.write(f"{URI}/tokenizer_config.json", b"not of this checkpoint")
    known = entries({**files, "optimizer.safetensors": b"large"})

    def read(data: bytes, uri: str) -> SourceManifest:
        assert (data, uri) == (b"the manifest", f"{URI}/manifest.json")
        return SourceManifest(known)

    model = found(store, read_manifest=read)
    assert model.digests is Digests.SOURCE
    assert {f.name: f.sha256 for f in model.files} == {n: known[n].sha256 for n in files}


def test_a_manifest_may_place_its_files_in_a_directory_beside_it():
    files = a_model(shards=2)
    store = stored(files, f"{URI}/data-01")
    store.write(f"{URI}/manifest.json", b"m")
    model = found(store, read_manifest=lambda *_: SourceManifest(entries(files), "data-01"))
    assert {file.blob.uri for file in model.files} == {f"{URI}/data-01/{name}" for name in files}
    assert model.uri == URI


def test_a_file_that_the_manifest_does_not_fit_is_refused_before_it_is_fetched():
    files = a_model()
    store = stored({**files, "manifest.json": b"m"})
    known = {**entries(files), "model.safetensors": PublishedFile(999, "0" * 64)}
    with pytest.raises(InvalidCheckpointError, match="has 7 bytes and the manifest says 999"):
        found(store, read_manifest=lambda data, uri: SourceManifest(known))


def published(files: Mapping[str, bytes]) -> PublishedModel:
    known = {name: entry for name, entry in entries(files).items() if not name.endswith(".json")}
    return PublishedModel("small", "someone/small", known)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    monkeypatch.setattr(PublishedModel, "config", SMALL)
    return published(a_model(shards=3, bin=True))


def test_a_published_model_is_compared_with_its_digests(small: PublishedModel):
    files = a_model(shards=3, bin=True)
    # A later edition beside it, of which no digests are known, is left alone.
    model = found(stored({**a_model(shards=2), **files}), published=small)
    assert model.digests is Digests.BUILT_IN
    assert sorted(file.name for file in model.files) == sorted(files)
    assert {f.name: f.sha256 for f in model.files if f.sha256} == {
        name: entry.sha256 for name, entry in small.files.items()
    }


def test_another_edition_of_a_published_model_has_no_built_in_digests(small: PublishedModel):
    assert found(stored(a_model(shards=2)), published=small).digests is Digests.NONE


def test_a_shard_of_another_length_is_not_the_published_one(small: PublishedModel):
    files = a_model(shards=3, bin=True)
    files["pytorch_model-00002-of-00003.bin"] = b"trunc"
    with pytest.raises(InvalidCheckpointError, match=r"00002-of-00003\.bin has 5 bytes.*published"):
        found(stored(files), published=small)


def test_a_published_index_names_the_models_tensors_and_shards_alone(small: PublishedModel):
    files = a_model(shards=3, bin=True)
    for tensor, shard in (("extra", "pytorch_model-00001-of-00003.bin"), (TENSORS[0], "x.bin")):
        index = json.loads(files["pytorch_model.bin.index.json"])
        index["weight_map"][tensor] = shard
        broken = {**files, "pytorch_model.bin.index.json": json.dumps(index).encode()}
        with pytest.raises(InvalidCheckpointError, match=r"not that of small: it differs in"):
            found(stored(broken), published=small)


def test_another_config_is_not_the_published_one(small: PublishedModel):
    files = a_model(shards=3, bin=True)
    other = attrs.evolve(SMALL, rope_ratio=50.0).to_hugging_face()
    files["config.json"] = json.dumps(other).encode()
    with pytest.raises(InvalidConfigError, match=r"rope_ratio is 50\.0 and not 1\.0"):
        found(stored(files), published=small)


def test_another_architecture_is_refused():
    files = {**a_model(), "config.json": b'{"model_type": "llama"}'}
    with pytest.raises(InvalidConfigError, match=r"memory://models/one/config\.json.*'llama'"):
        found(stored(files))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x.bin",
            "/etc/passwd",
            "a/b.bin",
            ".hidden.bin",
            "x.safetensors",
            "x.py",
            "",
            "x\0.bin",
        ),
        *("..\\x.bin", "%2e%2e%2fx.bin", "x.bin?y=.bin", "-" + "x.bin", "名.bin", "x.bin\n"),
    ],
)
def test_an_index_names_nothing_but_weights_beside_it(name: str):
    files = a_model(shards=2, bin=True)
    index = {
        "weight_map": {**dict.fromkeys(TENSORS, "pytorch_model-00001-of-00002.bin"), "x": name}
    }
    files["pytorch_model.bin.index.json"] = json.dumps(index).encode()
    with pytest.raises(UnsafeCheckpointError, match="nothing was fetched"):
        found(stored(files))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "no weight_map"),
        (b'{"weight_map": {}}', "lacks transformer"),
        (b" " * (2**24 + 1), "has 16777217 bytes, and at most 16777216"),
        (json.dumps({"weight_map": {str(i): f"{i}.bin" for i in range(1001)}}).encode(), "1001"),
    ],
)
def test_an_index_that_is_none_is_refused(index: bytes, message: str):
    files = {**a_model(shards=2, bin=True), "pytorch_model.bin.index.json": index}
    with pytest.raises(InvalidCheckpointError, match=message):
        found(stored(files))


@pytest.mark.parametrize(
    "missing",
    ["tokenizer.model", "model-00002-of-00003.safetensors", "model.safetensors.index.json"],
)
def test_what_is_missing_is_named(missing: str):
    files = a_model(shards=3)
    del files[missing]
    with pytest.raises(InvalidCheckpointError) as raised:
        found(stored(files))
    assert URI in str(raised.value)
    assert missing in str(raised.value)


def test_where_no_model_is_the_message_says_what_is():
    with pytest.raises(InvalidCheckpointError, match=r"no model at memory.*there is nothing"):
        found(MemoryBlobStore())
    with pytest.raises(InvalidCheckpointError, match=r"there is a\.txt, b\.txt"):
        found(stored({"a.txt": b"", "b.txt": b""}))


def test_an_adapter_is_its_config_and_its_tensors():
    config = json.dumps(Lora().to_peft(base="glm3-6b")).encode()
    files = {"adapter_config.json": config, "adapter_model.safetensors": b"pairs"}
    model = found(stored(files))
    assert [file.name for file in model.files] == sorted(files)
    with pytest.raises(InvalidCheckpointError, match=r"no adapter_model\.safetensors"):
        found(stored({"adapter_config.json": config}))
    with pytest.raises(InvalidCheckpointError, match=r"adapter_config\.json"):
        found(stored({**files, "adapter_config.json": b"{}"}))
    with pytest.raises(InvalidCheckpointError, match="must be 'LORA'"):
        found(stored({**files, "adapter_config.json": b"[]"}))


def test_a_run_is_its_result_or_else_its_newest_checkpoint():
    files = a_model()
    store = MemoryBlobStore()

    def publish(place: str) -> None:
        stored({**files, "manifest.json": b"m"}, f"{URI}/{place}", store)

    def uri() -> str:
        return found(
            store, URI + "/", read_manifest=lambda data, uri: SourceManifest(entries(files))
        ).uri

    stored({"unfinished.bin": b""}, f"{URI}/checkpoints/step-00000009", store)
    for place in ("checkpoints/step-00000003", "checkpoints/step-00000005", "result"):
        publish(place)
        assert uri() == f"{URI}/{place}"


def test_a_bucket_that_refuses_to_say_that_nothing_is_there_does_not_hide_the_rest():
    class Refusing(Forgetful):
        def stat(self, uri: str) -> Blob | None:
            blob = super().stat(uri)
            if blob is None:
                raise BlobAccessError("403")
            return blob

    model = found(stored(a_model(), store=Refusing()))
    assert [file.name for file in model.files] == sorted(a_model())
    with pytest.raises(BlobAccessError, match="403"):
        found(Refusing())


def test_the_built_in_digests_are_those_of_the_official_repository(shared_data: Path):
    known = json.loads((shared_data / "hf" / "lfs_digests.json").read_text())
    model = PUBLISHED_MODELS["glm3-6b"]
    assert {name: attrs.asdict(entry) for name, entry in model.files.items()} == known["files"]
    assert known["repository"].startswith(model.repository)


def test_the_official_config_and_index_are_those_of_glm3_6b(shared_data: Path):
    model = PUBLISHED_MODELS["glm3-6b"]
    store = _Official(LocalBlobStore(), model)
    found_model = found(store, str(shared_data / "hf"), published=model)
    assert found_model.digests is Digests.BUILT_IN
    assert {file.name for file in found_model.files} == {
        *model.files,
        *("config.json", "pytorch_model.bin.index.json", "tokenizer_config.json"),
    }


class _Official:
    """The real small files, and the sizes of the large ones."""

    def __init__(self, store: LocalBlobStore, model: PublishedModel) -> None:
        self.store, self.model = store, model
        self.list, self.read = store.list, store.read

    def stat(self, uri: str) -> Blob | None:
        name = uri.rsplit("/", 1)[-1]
        if name in self.model.files:
            return Blob(uri, self.model.files[name].size)
        return self.store.stat(uri)
