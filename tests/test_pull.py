"""`pull`, from every kind of source to a model that can be loaded, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from reference.torch_files import write_torch_shards
from scripted_model import play
from servers.hub_double import running_hub
from servers.model_sources import SCHEMES, on_obs, on_web, pulling_process, source
from servers.obs_stores import settings  # noqa: F401  # a fixture
from servers.s3_double import S3Double
from servers.web_server import Page, WebServer

from glm3sdk import load_finetune, load_service, load_tokenizer, pull
from glm3sdk.adapters.storage import retries
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.bootstrap import model_uris, models, pulling
from glm3sdk.bootstrap.cached import cached_models
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.bootstrap.pulling import PullProgress
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.published_models import PUBLISHED_MODELS, PublishedFile, PublishedModel
from glm3sdk.errors import (
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    CheckpointWriteError,
    Glm3Error,
    InvalidCheckpointError,
    InvalidConfigError,
    InvalidTokenizerError,
    OfflineError,
    TransferError,
    UnknownNameError,
    UnsafeCheckpointError,
)
from glm3sdk.testing import write_random_checkpoint
from glm3sdk.testing.random_checkpoint import random_weights

TINY = model_directory("tiny")
SMALL = Glm3Config(
    num_layers=1,
    hidden_size=64,
    ffn_hidden_size=32,
    num_attention_heads=2,
    kv_channels=16,
    multi_query_group_num=1,
    padded_vocab_size=2048,
)
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small random model in three shards."""
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, SMALL, shards=3, dtype="float16")
    shutil.copy(TINY / "tokenizer.model", folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; nothing is waited for between tries."""
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("GLM3SDK_OFFLINE", "HF_HUB_OFFLINE", "GLM3SDK_MODEL_SOURCE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def put(files: Mapping[str, bytes], folder: Path) -> str:
    """A directory with these files; its URI."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder.as_uri()


def manifest(files: Mapping[str, bytes], **others: object) -> bytes:
    entries = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    return json.dumps({"version": 1, "files": {**entries, **others}}).encode()


def assert_nothing_is_published() -> None:
    assert cached_models() == ()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_comes_from_anywhere_and_is_fetched_once(
    model: dict[str, bytes], scheme: str, tmp_path: Path
):
    steps: list[PullProgress] = []
    (tmp_path / "there").mkdir()
    with source(scheme, model, tmp_path / "there") as there:
        pulled = pull(there.uri, progress=steps.append)
        assert not pulled.already_there
        assert (pulled.key, pulled.source) == (there.uri, there.uri)
        # The hub tells the sha256 of large files; the others know none.
        assert pulled.digests == ("source" if scheme == "hf" else "none")
        assert {name: entry.size for name, entry in pulled.files.items()} == {
            name: len(data) for name, data in model.items()
        }
        assert {file: (pulled.path / file).read_bytes() for file in model} == model
        assert steps[-1].done == steps[-1].total == pulled.bytes == sum(map(len, model.values()))
        before = len(there.read())
        again = pull(f"{there.uri}/")
        assert again.already_there
        assert (again.path, again.files) == (pulled.path, pulled.files)
        # Looked at, and none of the weights read.
        assert not set(there.read()[before:]) & {*SHARDS, "tokenizer.model"}
        opened = open_model(there.uri)
    weights = random_weights(SMALL, dtype="float16")
    for name in weights:
        np.testing.assert_array_equal(opened.checkpoint.read(name), weights[name])


def test_a_run_in_an_object_store_is_its_result(
    model: dict[str, bytes],
    settings: pytest.MonkeyPatch,  # noqa: F811
    tmp_path: Path,
):
    source_model = open_model(put(model, tmp_path / "source"))
    with S3Double() as double:
        on_obs(double, {}, settings)
        writer = BlobCheckpointStore(ObsBlobStore(), staging=tmp_path / "staging").create(
            "obs://bucket/run-42/result"
        )
        for name in ("config.json", "tokenizer.model"):
            writer.add_file(name, model[name])
        tensors = source_model.checkpoint.tensors
        values = [(name, source_model.checkpoint.read(name)) for name in tensors]
        writer.add_tensors("model.safetensors", tensors, values)
        writer.commit()
        pulled = pull("obs://bucket/run-42")
        assert pulled.digests == "source"
        assert sorted(pulled.files) == ["config.json", "model.safetensors", "tokenizer.model"]
        assert open_model("obs://bucket/run-42").config == SMALL


class Published:
    """ "glm3-6b", scaled down: what the SDK knows of it, and its files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.known = {
            name: PublishedFile(len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
            if not name.endswith(".json")
        }


@pytest.fixture
def published(
    model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Published:
    """Laid out as the official repository is: .bin shards, of which the SDK knows digests."""
    folder = tmp_path / "official"
    folder.mkdir()
    weights = random_weights(SMALL, dtype="float16")
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    placed = {name: shards[number % 2] for number, name in enumerate(weights)}
    write_torch_shards(folder, weights, placed)
    small = {name: model[name] for name in ("config.json", "tokenizer.model")}
    files = {**small, **{file.name: file.read_bytes() for file in folder.iterdir()}}
    result = Published(files)
    glm3 = PublishedModel("glm3-6b", "THUDM/chatglm3-6b", result.known)
    for module in (models, model_uris, pulling):
        monkeypatch.setattr(module, "PUBLISHED_MODELS", {**PUBLISHED_MODELS, "glm3-6b": glm3})
    monkeypatch.setattr(PublishedModel, "config", SMALL)
    return result


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on every connection fails the test."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a network call: {arguments}")

    def forbid() -> None:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return forbid


def test_a_published_name_comes_from_the_hub_with_the_digests_that_the_sdk_knows(
    published: Published, monkeypatch: pytest.MonkeyPatch, no_network: Callable[[], None]
):
    play(monkeypatch, "好的")
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repository("THUDM/chatglm3-6b").push(published.files)
        pulled = pull("glm3-6b")
    assert (pulled.key, pulled.source) == ("glm3-6b", "hf://THUDM/chatglm3-6b")
    assert (pulled.digests, pulled.already_there) == ("built-in", False)
    no_network()
    again = pull("glm3-6b")
    assert (again.digests, again.already_there, again.path) == ("built-in", True, pulled.path)
    # Where it would be fetched from does not matter any more.
    assert pull("glm3-6b", source="obs://bucket/elsewhere").already_there
    assert load_tokenizer("glm3-6b").encode("你好")
    weights = random_weights(SMALL, dtype="float16")
    opened = open_model("glm3-6b")
    for name in weights:
        np.testing.assert_array_equal(opened.checkpoint.read(name), weights[name])


def test_a_company_serves_published_models_from_its_own_store(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(published.files, tmp_path / "models" / "glm3-6b")
    monkeypatch.setenv("GLM3SDK_MODEL_SOURCE", f"{(tmp_path / 'models').as_uri()}/")
    pulled = pull("glm3-6b")
    assert pulled.digests == "built-in"
    assert pulled.source == (tmp_path / "models" / "glm3-6b").as_uri()


@pytest.mark.parametrize("bare", [False, True])
def test_a_source_is_a_path_or_a_repositorys_bare_id_too(
    published: Published, tmp_path: Path, bare: bool, monkeypatch: pytest.MonkeyPatch
):
    put(published.files, tmp_path / "there")
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repository("zai-org/chatglm3-6b").push(published.files)
        place = "zai-org/chatglm3-6b" if bare else str(tmp_path / "there")
        assert pull("glm3-6b", source=place).digests == "built-in"


def test_another_edition_of_a_published_model_is_taken_and_said_to_have_no_digests(
    published: Published, model: dict[str, bytes], tmp_path: Path
):
    converted = put(model, tmp_path / "converted")
    assert pull("glm3-6b", source=converted).digests == "none"
    assert pull("glm3-6b").already_there  # and it stands for the name until it is pruned
    # Who names a source has it looked at, as long as the cache has not the published files.
    official = put(published.files, tmp_path / "there")
    pulled = pull("glm3-6b", source=official)
    assert (pulled.digests, pulled.already_there) == ("built-in", False)


def test_a_damaged_copy_of_a_published_model_is_not_taken(
    published: Published, web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard = max(published.known, key=lambda name: published.known[name].size)  # it comes last
    damaged = dict(published.files)
    damaged[shard] = damaged[shard][:-1] + bytes([damaged[shard][-1] ^ 1])
    with running_hub() as hub:  # which tells the sha256, so nothing large is fetched
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repository("THUDM/chatglm3-6b").push(damaged)
        with pytest.raises(InvalidCheckpointError, match=f"{shard} has the sha256"):
            pull("glm3-6b")
        assert not [line for line in hub.requests if line.startswith("CDN")]
    with pytest.raises(TransferError, match=rf"{shard} did not arrive as it should be"):
        pull("glm3-6b", source=on_web(web, damaged).uri)
    assert_nothing_is_published()
    # What arrived right is not fetched again.
    good = on_web(web, published.files)
    before = len(good.read())
    assert pull("glm3-6b", source=good.uri).digests == "built-in"
    fetched = [name for name in good.read()[before:] if name.endswith((".bin", ".model"))]
    assert fetched == [shard]


def test_a_byte_that_changes_on_the_way_is_an_error_and_the_next_try_is_right(
    model: dict[str, bytes], web: WebServer
):
    there = on_web(web, {**model, "manifest.json": manifest(model)})
    web.on("GET", path=f"/models/one/{SHARDS[1]}", flip=100)
    with pytest.raises(TransferError, match=f"{SHARDS[1]} did not arrive as it should be"):
        load_service(there.uri)
    assert_nothing_is_published()
    assert pull(there.uri).digests == "source"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".hidden"])
@pytest.mark.parametrize("where", ["index", "manifest"])
def test_a_name_that_leads_out_of_the_model_is_refused(
    model: dict[str, bytes], web: WebServer, name: str, where: str, cache: Path
):
    files = dict(model)
    if where == "index":
        index = json.loads(files["model.safetensors.index.json"])
        index["weight_map"]["extra"] = name
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    else:
        entry = {"size": 1, "sha256": "0" * 64}
        files["manifest.json"] = manifest(model, **{name: entry})
    there = on_web(web, files)
    error = UnsafeCheckpointError if where == "index" else InvalidCheckpointError
    with pytest.raises(error, match="names"):
        pull(there.uri)
    assert not set(there.read()) & {*SHARDS, "passwd", "x", "b"}
    assert_nothing_is_published()


def test_a_link_out_of_a_directory_is_not_followed(model: dict[str, bytes], tmp_path: Path):
    uri = put(model, tmp_path / "there")
    (tmp_path / "secret").write_bytes(model["tokenizer.model"])
    (tmp_path / "there" / "tokenizer.model").unlink()
    (tmp_path / "there" / "tokenizer.model").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeCheckpointError, match="is a link out of its directory"):
        pull(uri)
    assert_nothing_is_published()


def test_what_is_missing_or_cut_off_is_named(model: dict[str, bytes], tmp_path: Path):
    def refused(name: str, error: type[Glm3Error], message: str, **changed: bytes | None) -> None:
        files = {**model, **changed}
        uri = put({n: data for n, data in files.items() if data is not None}, tmp_path / name)
        with pytest.raises(error, match=message):
            pull(uri)

    shard = SHARDS[2]
    refused("missing", InvalidCheckpointError, f"has no {shard}", **{shard: None})
    refused("cut", InvalidCheckpointError, f"no sound model: {shard}", **{shard: model[shard][:-9]})
    short = {shard: model[shard][:-9], "manifest.json": manifest(model)}
    refused("short", InvalidCheckpointError, f"{shard} has .* the manifest says", **short)
    other = json.dumps({**SMALL.to_hugging_face(), "hidden_size": 32}).encode()
    refused("shape", InvalidCheckpointError, r"no sound model: tensor", **{"config.json": other})
    llama = b'{"model_type": "llama"}'
    refused("llama", InvalidConfigError, r"config\.json.*'llama'", **{"config.json": llama})
    page = {"tokenizer.model": b"<html>log in</html>"}
    refused("portal", InvalidTokenizerError, "no sound model", **page)
    assert_nothing_is_published()


def test_room_is_looked_for_before_anything_is_fetched(
    model: dict[str, bytes], web: WebServer, monkeypatch: pytest.MonkeyPatch
):
    there = on_web(web, model)
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(CheckpointWriteError, match=r"GB free.*GLM3SDK_CACHE_DIR"):
            pull(there.uri)
    assert not set(there.read()) & {*SHARDS, "tokenizer.model"}
    pull(there.uri)
    with monkeypatch.context() as patch:  # what is there already needs no room
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        assert pull(there.uri).already_there


def test_a_server_that_goes_midway_is_an_error_and_what_came_is_kept(
    model: dict[str, bytes], web: WebServer
):
    there = on_web(web, model)
    largest = max(model, key=lambda name: len(model[name]))  # it comes last
    web.on("GET", path=f"/models/one/{largest}", times=10_000, body=100)
    with pytest.raises(BlobUnavailableError, match=largest):
        pull(there.uri)
    assert_nothing_is_published()
    web._faults.clear()
    before = len(there.read())
    pull(there.uri)
    assert [name for name in there.read()[before:] if not name.endswith(".json")] == [largest]


def test_a_process_that_is_killed_leaves_what_it_fetched_to_the_next(
    model: dict[str, bytes], web: WebServer
):
    there = on_web(web, model)
    reached, never = threading.Event(), threading.Event()
    largest = max(model, key=lambda name: len(model[name]))
    web.on("GET", path=f"/models/one/{largest}", before=reached.set, body=10, hold=never)
    process = pulling_process(there.uri)
    assert reached.wait(30), process.communicate(timeout=5)
    process.kill()
    process.communicate()
    never.set()
    assert_nothing_is_published()
    before = len(there.read())
    pull(there.uri)
    assert [name for name in there.read()[before:] if not name.endswith(".json")] == [largest]


def test_two_processes_fetch_a_model_once(model: dict[str, bytes], web: WebServer):
    there = on_web(web, model)
    # The first one there is held back until the other one is waiting for it or past it.
    both = threading.Barrier(2, timeout=30)
    web.on("HEAD", path="/models/one/tokenizer.model", times=2, before=both.wait)
    processes = [pulling_process(there.uri) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    for name in (*SHARDS, "tokenizer.model"):
        assert there.read().count(name) == 1


@pytest.mark.parametrize("switch", ["GLM3SDK_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_cache_is_used_and_nothing_is_asked(
    model: dict[str, bytes],
    web: WebServer,
    monkeypatch: pytest.MonkeyPatch,
    no_network: Callable[[], None],
    switch: str,
):
    there = on_web(web, model)
    path = pull(there.uri).path
    monkeypatch.setenv(switch, "true")
    no_network()
    assert pull(there.uri).path == path
    assert open_model(there.uri).config == SMALL
    assert load_tokenizer(there.uri).encode("你好")
    for missing in ("glm3-6b", "obs://bucket/other", "hf://someone/model", f"{there.uri}/other"):
        with pytest.raises(OfflineError, match=f"{switch}=true"):
            pull(missing)


def test_a_directory_is_no_network(model: dict[str, bytes], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GLM3SDK_OFFLINE", "1")
    assert not pull(put(model, tmp_path / "there")).already_there


def test_a_uri_is_looked_at_again_and_what_changed_is_fetched(
    model: dict[str, bytes], web: WebServer
):
    there = on_web(web, model)
    first = pull(there.uri)
    small = json.dumps({**json.loads(model["config.json"]), "more": 1}).encode()
    web.pages["/models/one/config.json"] = Page(small)
    second = pull(there.uri)
    assert not second.already_there
    assert second.path != first.path
    assert (second.path / "config.json").read_bytes() == small
    web.on("HEAD", times=10_000, status=503)
    with pytest.raises(BlobUnavailableError, match="can be used with GLM3SDK_OFFLINE=1"):
        pull(there.uri)
    assert (first.path / "config.json").read_bytes() == model["config.json"]


def test_a_model_that_is_replaced_midway_is_begun_again(model: dict[str, bytes], web: WebServer):
    there = on_web(web, model)
    changes = iter(range(1, 100))

    def replace() -> None:
        config = {**json.loads(model["config.json"]), "edition": next(changes)}
        web.pages["/models/one/config.json"] = Page(json.dumps(config).encode())
        shard = web.pages[f"/models/one/{SHARDS[0]}"]
        web.pages[f"/models/one/{SHARDS[0]}"] = Page(shard.content, etag=f'"{next(changes)}"')

    path = f"/models/one/{SHARDS[0]}"
    web.on("GET", path=path, before=replace)
    pulled = pull(there.uri)
    # All of it is of the second edition.
    assert json.loads((pulled.path / "config.json").read_bytes())["edition"] == 1
    web.on("GET", path=path, times=10_000, before=replace)
    replace()
    with pytest.raises(BlobChangedError, match="again and again"):
        pull(there.uri)
    assert pulled.path.is_dir()


def test_an_adapter_brings_its_base_along(
    model: dict[str, bytes], tmp_path: Path, no_network: Callable[[], None]
):
    base = put(model, tmp_path / "base")
    lora = Lora(rank=2, targets=("query_key_value",))
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    pairs = lora.pairs(SMALL)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32)
        for pair in pairs
        for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b))
    }
    save_file(tensors, tmp_path / "tensors")
    files = {
        "adapter_config.json": json.dumps(lora.to_peft(base=base)).encode(),
        "adapter_model.safetensors": (tmp_path / "tensors").read_bytes(),
    }
    uri = put(files, tmp_path / "adapter")
    assert sorted(pull(uri).files) == sorted(files)
    assert {cached.key for cached in cached_models()} == {uri, base}
    opened = open_model(uri)
    assert opened.config == SMALL
    assert opened.tokenizer_path is not None
    weight = pairs[0].weight
    merged = random_weights(SMALL, dtype="float16")[weight].astype(np.float32)
    merged += lora.alpha / lora.rank * tensors[pairs[0].name_b] @ tensors[pairs[0].name_a]
    # In half precision, which the base has.
    np.testing.assert_allclose(opened.checkpoint.read(weight), merged, rtol=2e-3, atol=2e-3)


def test_of_a_tokenizer_nothing_else_is_fetched(model: dict[str, bytes], web: WebServer):
    there = on_web(web, model)
    assert load_tokenizer(there.uri).encode("你好") == load_tokenizer("tiny").encode("你好")
    assert not set(there.read()) & set(SHARDS)
    assert [cached.key for cached in cached_models()] == [f"{there.uri} (without weights)"]


def test_a_password_in_an_address_is_sent_and_never_shown(model: dict[str, bytes], web: WebServer):
    address = on_web(web, model).uri.replace("://", "://someone:pass-word@")
    pulled = pull(address)
    assert "pass-word" not in json.dumps(pulled.to_json())
    assert all("pass-word" not in cached.key + cached.source for cached in cached_models())
    assert web.seen[-1].headers["authorization"].startswith("Basic ")
    with pytest.raises(InvalidCheckpointError) as raised:
        pull(f"{address}/nothing")
    assert "pass-word" not in str(raised.value)


def test_a_finetune_run_starts_from_a_model_that_is_fetched(
    model: dict[str, bytes], tmp_path: Path
):
    data = tmp_path / "train.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    data.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    uri = put(model, tmp_path / "there")
    run = load_finetune(
        {
            "output": str(tmp_path / "run"),
            "model": {"path": uri},
            "train_data": {"path": str(data), "max_seq_length": 32},
            "training": {"seq_length": 32},
        }
    )
    assert run.total_steps >= 1
    assert [cached.key for cached in cached_models()] == [uri]


def test_what_is_no_model_says_what_is(tmp_path: Path):
    with pytest.raises(UnknownNameError, match=r"no model or source 'glm4'.*glm3-6b"):
        pull("glm4")
    with pytest.raises(UnknownNameError, match="no published model 'obs://a/b'"):
        pull("obs://a/b", source="obs://c/d")
    with pytest.raises(UnknownNameError, match="names no directory"):
        pull("https://host/model.bin?signature=abc")
    with pytest.raises(UnknownNameError, match="no storage scheme 'gopher'"):
        pull("gopher://host/x")
    with pytest.raises(InvalidCheckpointError, match="there is nothing"):
        pull(tmp_path.as_uri())


def test_a_store_that_refuses_says_so(settings: pytest.MonkeyPatch):  # noqa: F811
    with S3Double(buckets=()) as double:
        on_obs(double, {}, settings)
        with pytest.raises(BlobAccessError, match="bucket"):
            pull("obs://bucket/models/one")
