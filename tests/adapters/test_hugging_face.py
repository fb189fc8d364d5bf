from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from reference.torch_files import pickled, write_archive, write_torch, write_torch_shards
from safetensors.numpy import load_file, save_file

from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import (
    Glm3Error,
    InvalidCheckpointError,
    InvalidConfigError,
    UnsafeCheckpointError,
)
from glm3sdk.testing.random_checkpoint import random_weights, write_random_checkpoint

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=2,
    kv_channels=4,
    multi_query_group_num=1,
    padded_vocab_size=16,
    seq_length=32,
)
FINAL_NORM = "transformer.encoder.final_layernorm.weight"
OUTPUT = "transformer.output_layer.weight"
TORCH_INDEX = "pytorch_model.bin.index.json"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "model", CONFIG)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "model", CONFIG, shards=2)
    return tmp_path / "model"


def change_weights(model: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors")


def change_index(
    model: Path, change: Callable[[dict[str, str]], object], index: str = INDEX
) -> None:
    values = json.loads((model / index).read_text())
    change(values["weight_map"])
    (model / index).write_text(json.dumps(values))


@pytest.fixture
def torch_model(model: Path) -> Path:
    """A model in one file that torch saved."""
    write_torch(model / "pytorch_model.bin", load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    return model


@pytest.fixture
def torch_sharded(model: Path) -> Path:
    """A model in two files that torch saved, and their index."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    places = {
        name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin"
        for number, name in enumerate(weights)
    }
    write_torch_shards(model, weights, places)
    return model


def refuse(path: Path, *words: str, error: type[Glm3Error] = InvalidCheckpointError) -> None:
    """Opening names the path and every word, in one line."""
    with pytest.raises(error) as raised:
        HuggingFaceDirectory(path)
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_a_directory_is_opened_with_its_config_and_every_tensor(model: Path) -> None:
    directory = HuggingFaceDirectory(str(model))
    assert directory.config == CONFIG
    assert directory.tokenizer_path is None
    assert require_tensors(directory, directory.config) == ()


def test_the_tokenizer_is_found_where_there_is_one(model: Path) -> None:
    (model / "tokenizer.model").write_bytes(b"pieces")
    assert HuggingFaceDirectory(model).tokenizer_path == model / "tokenizer.model"


def test_a_single_safetensors_of_another_name_is_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    require_tensors(HuggingFaceDirectory(model), CONFIG)


def test_several_safetensors_without_an_index_are_read_together(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    require_tensors(HuggingFaceDirectory(sharded), CONFIG)


def test_the_published_config_is_read_with_its_byte_order_mark_too(
    shared_data: Path, model: Path
) -> None:
    text = (shared_data / "hf" / "config.json").read_text()
    (model / "config.json").write_text(text, encoding="utf-8-sig")
    assert HuggingFaceDirectory(model).config == Glm3Config.preset("glm3-6b")


def test_a_slice_costs_its_own_bytes_and_no_more(model: Path) -> None:
    change_weights(model, lambda w: w.update(big=np.ones((1000, 1000), np.float32)))
    directory = HuggingFaceDirectory(model)
    directory.read("big", (slice(0, 1),))  # what is allocated once is not the read's
    tracemalloc.start()
    row = directory.read("big", (slice(7, 8),))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row.nbytes == 4000
    assert peak < 100_000  # of 4 MB


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "no directory", "config.json")


def test_a_file_instead_of_a_directory_is_refused(model: Path) -> None:
    refuse(model / "config.json", "is a file")


def test_a_path_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / ("x" * 300), "cannot be opened: File name too long")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "no config.json", "it holds nothing", error=InvalidConfigError)


def test_a_directory_without_config_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    refuse(model, "no config.json", "model.safetensors", error=InvalidConfigError)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "object"),
        (b"{}", "unknown architecture"),
        (b'{"model_type": "llama"}', "'llama'"),
        (b'{"model_type": "chatglm"}', "lacks"),
    ],
)
def test_a_config_that_is_not_one_is_refused(model: Path, content: bytes, word: str) -> None:
    (model / "config.json").write_bytes(content)
    refuse(model, "config.json", word, error=InvalidConfigError)


def test_a_config_that_cannot_be_read_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    refuse(model, "config.json cannot be read", error=InvalidConfigError)


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    refuse(model, "no *.safetensors", "put the model's weights there")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00007.bin"])
def test_a_file_that_torch_saved_is_read(torch_model: Path, name: str) -> None:
    (torch_model / "pytorch_model.bin").rename(torch_model / name)
    directory = HuggingFaceDirectory(torch_model)
    assert require_tensors(directory, CONFIG) == ()
    np.testing.assert_array_equal(directory.read(OUTPUT), random_weights(CONFIG)[OUTPUT])


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_that_torch_saved_are_read(torch_sharded: Path, with_index: bool) -> None:
    if not with_index:
        (torch_sharded / TORCH_INDEX).unlink()
    directory = HuggingFaceDirectory(torch_sharded)
    assert require_tensors(directory, CONFIG) == ()
    for name, weight in random_weights(CONFIG).items():
        np.testing.assert_array_equal(directory.read(name), weight)


def test_the_published_index_places_every_weight_of_its_seven_shards(
    shared_data: Path, tmp_path: Path
) -> None:
    config = attrs.evolve(CONFIG, num_layers=28)
    weights = write_random_checkpoint(tmp_path, config, dtype="float16")
    (tmp_path / "model.safetensors").unlink()
    weights["transformer.rotary_pos_emb.inv_freq"] = np.ones(1, np.float16)
    placed = json.loads((shared_data / "hf" / TORCH_INDEX).read_text())["weight_map"]
    assert len(set(placed.values())) == 7
    write_torch_shards(tmp_path, weights, placed)
    directory = HuggingFaceDirectory(tmp_path)
    assert require_tensors(directory, config) == ()
    for name, weight in weights.items():
        assert directory.read(name).tobytes() == weight.tobytes()


def test_safetensors_are_read_where_torchs_files_lie_beside_them(model: Path) -> None:
    write_torch(model / "pytorch_model.bin", {"other": np.ones(3, np.float32)})
    (model / TORCH_INDEX).write_text("no index")
    assert require_tensors(HuggingFaceDirectory(model), CONFIG) == ()


def test_what_torch_saves_beside_the_weights_is_not_opened(torch_model: Path) -> None:
    (torch_model / "training_args.bin").write_bytes(b"anything")
    (torch_model / "pytorch_model.bin").rename(torch_model / "pytorch_model_1.bin")
    assert require_tensors(HuggingFaceDirectory(torch_model), CONFIG) == ()


def test_a_bomb_among_the_shards_is_named(torch_sharded: Path) -> None:
    shard = torch_sharded / "pytorch_model-00002-of-00002.bin"
    write_archive(shard, pickled({FINAL_NORM: b"cos\nsystem\n" + b")R"}), {})
    refuse(torch_sharded, shard.name, "os.system", error=UnsafeCheckpointError)


def test_a_torch_shard_that_the_index_names_and_nobody_has_is_refused(
    torch_sharded: Path,
) -> None:
    (torch_sharded / "pytorch_model-00002-of-00002.bin").unlink()
    refuse(torch_sharded, "pytorch_model-00002-of-00002.bin is missing", "download it again")


def test_a_truncated_torch_shard_is_refused(torch_sharded: Path) -> None:
    shard = torch_sharded / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    refuse(torch_sharded, f"{shard.name} is truncated or not a torch checkpoint")


def test_a_tensor_that_the_index_places_in_the_wrong_torch_shard_is_refused(
    torch_sharded: Path,
) -> None:
    change_index(
        torch_sharded,
        lambda places: places.update(ghost="pytorch_model-00001-of-00002.bin"),
        TORCH_INDEX,
    )
    refuse(torch_sharded, "pytorch_model-00001-of-00002.bin lacks ghost", TORCH_INDEX)


def test_a_tensor_in_two_torch_files_without_an_index_is_refused(torch_model: Path) -> None:
    shutil.copy(torch_model / "pytorch_model.bin", torch_model / "pytorch_model_2.bin")
    (torch_model / "pytorch_model.bin").rename(torch_model / "pytorch_model_1.bin")
    refuse(torch_model, "is both in", "pytorch_model_1.bin", "pytorch_model_2.bin")


def test_a_tensor_of_a_torch_shard_that_the_index_does_not_place_is_not_the_models(
    torch_sharded: Path,
) -> None:
    change_index(torch_sharded, lambda places: places.pop(FINAL_NORM), TORCH_INDEX)
    assert FINAL_NORM not in HuggingFaceDirectory(torch_sharded).tensors


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "sub/x.bin", "..", "", "a\\b"])
def test_an_index_of_torch_files_cannot_name_a_file_elsewhere(
    torch_sharded: Path, name: str
) -> None:
    change_index(torch_sharded, lambda places: places.update({FINAL_NORM: name}), TORCH_INDEX)
    refuse(torch_sharded, repr(name), "not a plain file name")


def test_a_link_of_torch_weights_out_of_the_directory_is_refused(torch_model: Path) -> None:
    (torch_model / "pytorch_model.bin").rename(torch_model.parent / "outside")
    (torch_model / "pytorch_model.bin").symlink_to(torch_model.parent / "outside")
    refuse(torch_model, "is a link out of its directory")


def test_an_index_that_places_a_tensor_twice_is_refused(sharded: Path) -> None:
    text = (sharded / INDEX).read_text()
    twice = f'"weight_map": {{"{FINAL_NORM}": "model-00001-of-00002.safetensors", '
    (sharded / INDEX).write_text(text.replace('"weight_map": {', twice))
    refuse(sharded, INDEX, "final_layernorm.weight' is there twice")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(model: Path, kept: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refuse(model, "model.safetensors is truncated or not safetensors")


def test_weights_of_another_format_are_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"PK\x03\x04 a torch file" * 100)
    refuse(model, "not safetensors")


def test_weights_that_are_truncated_after_opening_are_refused_when_read(model: Path) -> None:
    directory = HuggingFaceDirectory(model)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidCheckpointError, match=r"model\.safetensors is truncated"):
        directory.read(FINAL_NORM)
    file.unlink()
    with pytest.raises(InvalidCheckpointError, match="No such file"):
        directory.read(FINAL_NORM)


def test_a_tensor_in_two_files_without_an_index_is_refused(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "a.safetensors")
    (model / "model.safetensors").rename(model / "b.safetensors")
    refuse(model, "is both in", "a.safetensors", "b.safetensors")


def test_a_shard_that_the_index_names_and_nobody_has_is_refused(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refuse(sharded, "model-00002-of-00002.safetensors is missing")


def test_a_tensor_that_the_index_places_in_the_wrong_file_is_refused(sharded: Path) -> None:
    change_index(sharded, lambda places: places.update(ghost="model-00001-of-00002.safetensors"))
    refuse(sharded, "model-00001-of-00002.safetensors lacks ghost", INDEX)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"\xff"]
)
def test_an_index_that_is_not_one_is_refused(sharded: Path, content: bytes) -> None:
    (sharded / INDEX).write_bytes(content)
    refuse(sharded, INDEX)


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b", "a\0b"],
)
def test_an_index_cannot_name_a_file_elsewhere(sharded: Path, name: str) -> None:
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded.parent / "other.safetensors")
    (sharded / "sub").mkdir()
    shutil.copy(sharded.parent / "other.safetensors", sharded / "sub" / "x.safetensors")
    change_index(sharded, lambda places: places.update({FINAL_NORM: name}))
    refuse(sharded, repr(name), "not a plain file name")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("model.safetensors", InvalidCheckpointError),
        ("tokenizer.model", InvalidCheckpointError),
        ("config.json", InvalidConfigError),
    ],
)
def test_a_link_out_of_the_directory_is_refused(
    model: Path, name: str, error: type[Glm3Error]
) -> None:
    outside = model.parent / "outside"
    shutil.copy(model / "model.safetensors", outside)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(outside)
    refuse(model, "is a link out of its directory", str(outside), error=error)


def test_links_inside_the_directory_and_to_the_directory_are_followed(model: Path) -> None:
    (model / "model.safetensors").rename(model / "blob")
    (model / "model.safetensors").symlink_to("blob")
    (model.parent / "latest").symlink_to(model)
    require_tensors(HuggingFaceDirectory(model.parent / "latest"), CONFIG)


def test_a_loop_of_links_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("config.json")
    with pytest.raises(InvalidConfigError, match=r"config\.json"):
        HuggingFaceDirectory(model)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_snapshot_of_the_hugging_face_cache_is_read_through_its_links(
    tmp_path: Path, shards: int
) -> None:
    cache = tmp_path / "models--THUDM--chatglm3-6b"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    blobs.mkdir(parents=True)
    weights = write_random_checkpoint(snapshot, CONFIG, shards=shards)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    directory = HuggingFaceDirectory(snapshot)
    np.testing.assert_array_equal(directory.read(OUTPUT), weights[OUTPUT])


def test_a_link_out_of_the_hugging_face_cache_is_refused(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    write_random_checkpoint(snapshot, CONFIG)
    (snapshot / "model.safetensors").rename(tmp_path / "outside")
    (snapshot / "model.safetensors").symlink_to(tmp_path / "outside")
    refuse(snapshot, "is a link out of its directory")


def test_a_tensor_of_another_dtype_is_listed_and_cannot_be_read(model: Path) -> None:
    change_weights(model, lambda w: w.update({FINAL_NORM: np.ones(8, np.int8)}))
    directory = HuggingFaceDirectory(model)
    assert directory.tensors[FINAL_NORM].dtype == "i8"
    with pytest.raises(InvalidCheckpointError, match=rf"{FINAL_NORM} is i8; convert it"):
        directory.read(FINAL_NORM)
    with pytest.raises(InvalidCheckpointError, match=rf"{FINAL_NORM} is i8; convert it"):
        require_tensors(directory, CONFIG)


def test_missing_weights_are_named(model: Path) -> None:
    change_weights(model, lambda w: w.pop(FINAL_NORM))
    with pytest.raises(InvalidCheckpointError, match=f"lacks {FINAL_NORM};"):
        require_tensors(HuggingFaceDirectory(model), CONFIG)


def test_of_many_missing_weights_the_first_few_are_named(model: Path) -> None:
    deeper = attrs.evolve(CONFIG, num_layers=3)
    with pytest.raises(InvalidCheckpointError, match=r"layers\.2\..* and 4 more.*num_layers=3"):
        require_tensors(HuggingFaceDirectory(model), deeper)


def test_a_weight_of_another_shape_is_named_with_both_shapes(model: Path) -> None:
    wider = attrs.evolve(CONFIG, padded_vocab_size=20)
    with pytest.raises(
        InvalidCheckpointError, match=r"word_embeddings\.weight has shape \[16, 8\].*\[20, 8\]"
    ):
        require_tensors(HuggingFaceDirectory(model), wider)


def test_derived_tensors_are_ignored_and_unknown_ones_reported(model: Path) -> None:
    change_weights(
        model,
        lambda w: w.update(
            {"transformer.rotary_pos_emb.inv_freq": np.ones(1), "z": np.ones(1), "a": np.ones(1)}
        ),
    )
    assert require_tensors(HuggingFaceDirectory(model), CONFIG) == ("a", "z")


def test_random_weights_are_reproduced_by_their_seed() -> None:
    one, two, other = (random_weights(CONFIG, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not any(np.array_equal(one[name], other[name]) for name in one)
