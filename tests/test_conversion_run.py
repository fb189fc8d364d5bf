"""`convert`, from files to files: every format to every other, and all that can go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np
import pytest
from memory_storage import PassingBlobs, register_blobs
from reference.glm3_numpy import forward
from reference.torch_files import pickled, write_archive, write_torch, write_torch_shards
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from glm3sdk import ConversionReport, convert
from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE
from glm3sdk.adapters.storage import staged_writer
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.bootstrap import conversion
from glm3sdk.bootstrap.models import open_model
from glm3sdk.bootstrap.storage import checkpoint_store
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.weight_names import to_mindformers
from glm3sdk.errors import (
    CheckpointWriteError,
    Glm3Error,
    InvalidCheckpointError,
    InvalidConfigError,
    UnsafeCheckpointError,
    UserError,
)
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.testing import MemoryBlobStore
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

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
EMBEDDING = "transformer.embedding.word_embeddings.weight"
TABLE = "transformer.embedding.embedding_table"
NORM = "transformer.encoder.final_layernorm.weight"
FORMATS = {"hf": "d", "mindspore": "m.ckpt", "mindspore-safetensors": "m.safetensors"}
FILES = ("tokenizer.model", "tokenizer_config.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory in Hugging Face layout, with a tokenizer's files."""
    return made(tmp_path / "model")


def made(path: Path, dtype: str = "float16", **options: int) -> Path:
    write_random_checkpoint(path, CONFIG, dtype=dtype, **options)
    for name in FILES:
        (path / name).write_bytes(name.encode())
    return path


@pytest.fixture(scope="module")
def ms() -> Any:
    import mindspore

    from glm3sdk.adapters.mindspore.context import set_up
    from glm3sdk.adapters.mindspore.profiles import CPU

    set_up(CPU)  # before its first tensor: then other tests of this process can use it too
    return mindspore


@pytest.fixture
def ckpt(model: Path, tmp_path: Path) -> Path:
    """A .ckpt of MindFormers' names, with its config.json beside it."""
    path = tmp_path / "ms" / "glm3.ckpt"
    path.parent.mkdir()
    shutil.copy(model / "config.json", path.parent)
    weights = load_file(model / "model.safetensors")
    return write_ckpt(path, {to_mindformers(name): array for name, array in weights.items()})


def write_ckpt(path: Path, arrays: Mapping[str, HostArray]) -> Path:
    specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
    write_mindspore_ckpt(path, specs, arrays.items())
    return path


def arrays_of(reader: CheckpointReader) -> dict[str, tuple[str, bytes]]:
    return {
        name: (spec.dtype, reader.read(name).tobytes()) for name, spec in reader.tensors.items()
    }


def refuse(
    source: object,
    destination: Path | str,
    words: str,
    *,
    error: type[Glm3Error] = InvalidCheckpointError,
    to: str = "hf",
    **options: object,
) -> None:
    """Nothing is written, and one line says why."""
    parent = Path(destination).parent
    before = sorted(parent.rglob("*")) if parent.exists() else None
    with pytest.raises(error, match=words) as raised:
        convert(source, destination, to=to, **options)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    assert (sorted(parent.rglob("*")) if parent.exists() else None) == before


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_every_format_to_every_other_and_back_keeps_every_byte(
    first: str, second: str, tmp_path: Path
) -> None:
    source = made(tmp_path / "model", "bfloat16")
    steps = [source]
    for number, to in enumerate((first, second, "hf")):
        steps.append(tmp_path / str(number) / FORMATS[to])
        steps[-1].parent.mkdir()
        shutil.copy(source / "config.json", steps[-1].parent)
        convert(steps[-2], steps[-1], to=to)
    back = HuggingFaceDirectory(steps[-1])
    assert arrays_of(back) == arrays_of(HuggingFaceDirectory(source))
    assert back.config == CONFIG


def test_the_report_says_what_was_written(model: Path, tmp_path: Path) -> None:
    report = convert(str(model), str(tmp_path / "out"), to="safetensors")
    assert isinstance(report, ConversionReport)
    assert (report.destination, report.format) == (str(tmp_path / "out"), "hf")
    assert (report.tensors, report.dtypes) == (17, {"float16": 17})
    assert report.bytes == 2 * CONFIG.parameter_count
    assert (report.training_state, report.unknown, report.verified) == (0, (), True)
    assert report.model == str(model / "config.json")
    assert {file.name for file in report.files} == {"config.json", "model.safetensors", *FILES}
    for file in report.files:
        assert sha256sum(tmp_path / "out" / file.name) == file.sha256
        assert (tmp_path / "out" / file.name).stat().st_size == file.size
    assert json.loads(json.dumps(report.to_json()))["files"][0]["name"] == "config.json"


def sha256sum(path: Path) -> str:
    return subprocess.run(
        ["sha256sum", path], capture_output=True, text=True, check=True
    ).stdout.split()[0]


def test_a_directory_is_a_checkpoint_with_config_and_tokenizer(model: Path, tmp_path: Path) -> None:
    values = json.loads((model / "config.json").read_text()) | {"auto_map": {"AutoModel": "x"}}
    (model / "config.json").write_text(json.dumps(values))
    convert(model, tmp_path / "out", to="hf", dtype="bfloat16")
    checkpoint_store(str(tmp_path / "out")).open(str(tmp_path / "out")).verify()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == values | {"torch_dtype": "bfloat16"}
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == name.encode()
    assert open_model(tmp_path / "out").config == CONFIG


def test_large_models_are_laid_out_over_shards_with_an_index(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="hf", max_shard_bytes=1000)
    shards = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert [file.name for file in shards] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2 * CONFIG.parameter_count}
    held = {name: file.name for file in shards for name in load_file(file)}
    assert index["weight_map"] == held
    assert list(dict.fromkeys(held[name] for name in CONFIG.tensor_shapes())) == [
        file.name for file in shards
    ]
    assert arrays_of(HuggingFaceDirectory(tmp_path / "out")) == arrays_of(
        HuggingFaceDirectory(model)
    )


@pytest.mark.parametrize("layout", ["file", "shards", "single file of a directory"])
def test_what_torch_saved_is_converted(layout: str, model: Path, tmp_path: Path) -> None:
    expected = arrays_of(HuggingFaceDirectory(model))
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    source = model
    if layout == "shards":
        places = {n: f"pytorch_model-{1 + i % 3}.bin" for i, n in enumerate(weights)}
        write_torch_shards(model, weights, places)
    else:
        write_torch(model / "pytorch_model.bin", weights)
        source = model / "pytorch_model.bin" if layout == "file" else model
    convert(source, tmp_path / "out", to="hf")
    assert arrays_of(HuggingFaceDirectory(tmp_path / "out")) == expected


def test_the_published_example_gives_its_logits_from_torchs_file_and_from_mindspores(
    shared_data: Path, tmp_path: Path
) -> None:
    """Against outputs of the official code; the tolerance is that of the model's own tests."""
    published = shared_data / "parity" / "glm3_tiny"
    expected = np.load(published / "expected.npz")
    source = tmp_path / "torch"
    source.mkdir()
    shutil.copy(published / "config.json", source)
    write_torch(source / "pytorch_model.bin", load_file(published / "model.safetensors"))
    convert(source, tmp_path / "m.ckpt", to="mindspore")
    convert(tmp_path / "m.ckpt", tmp_path / "back", to="hf", config=published)
    for path in (source, tmp_path / "back"):
        opened = open_model(path)
        weights = {name: opened.checkpoint.read(name) for name in opened.checkpoint.tensors}
        logits = forward(opened.config, weights, expected["input_ids"], dtype=np.float32)
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=0)


def test_a_ckpt_has_mindformers_names_in_the_models_order_and_its_sum_beside(
    model: Path, tmp_path: Path
) -> None:
    convert(model, tmp_path / "m.ckpt", to="mindspore")
    names = list(MindSporeCkptFile(tmp_path / "m.ckpt").tensors)
    assert names == [TABLE, *list(CONFIG.tensor_shapes())[1:]]
    done = subprocess.run(
        ["sha256sum", "--check", "m.ckpt.sha256"], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"m.ckpt: OK\n")
    assert sorted(os.listdir(tmp_path)) == ["m.ckpt", "m.ckpt.sha256", "model"]


def test_a_safetensors_file_for_mindspore_says_so(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.safetensors", to="mindspore-safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "ms"}
        assert TABLE in opened.keys()  # noqa: SIM118  # the file is no mapping


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mindspore_itself_loads_what_was_written(dtype: str, tmp_path: Path, ms: Any) -> None:
    source = made(tmp_path / "model", dtype)
    convert(source, tmp_path / "m.ckpt", to="mindspore")
    convert(source, tmp_path / "m.safetensors", to="mindspore-safetensors")
    weights = HuggingFaceDirectory(source)
    for loaded in (
        ms.load_checkpoint(str(tmp_path / "m.ckpt")),
        ms.load_checkpoint(str(tmp_path / "m.safetensors"), format="safetensors"),
    ):
        assert set(loaded) == {to_mindformers(name) for name in weights.tensors}
        for name in weights.tensors:
            value = loaded[to_mindformers(name)]
            assert str(value.dtype).lower() == dtype
            # Through float32, which holds every value of the others: numpy has no bfloat16.
            np.testing.assert_array_equal(
                value.astype(ms.float32).asnumpy(), weights.read(name).astype(np.float32)
            )


def test_what_mindspore_itself_saved_is_converted(model: Path, tmp_path: Path, ms: Any) -> None:
    weights = load_file(model / "model.safetensors")
    saved = [
        {"name": to_mindformers(name), "data": ms.Tensor(array)} for name, array in weights.items()
    ]
    ms.save_checkpoint(
        [*saved, {"name": "epoch_num", "data": ms.Tensor(3)}], str(tmp_path / "m.ckpt")
    )
    report = convert(tmp_path / "m.ckpt", tmp_path / "out", to="hf", config=model)
    assert report.training_state == 1
    assert arrays_of(HuggingFaceDirectory(tmp_path / "out")) == arrays_of(
        HuggingFaceDirectory(model)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("to", FORMATS)
def test_the_dtype_is_changed_where_it_is_asked_for(dtype: str, to: str, tmp_path: Path) -> None:
    source = made(tmp_path / "model", "float32")
    report = convert(source, tmp_path / FORMATS[to], to=to, dtype=dtype)
    assert report.dtypes == {dtype: 17}
    convert(tmp_path / FORMATS[to], tmp_path / "back", to="hf", config=source)
    back = HuggingFaceDirectory(tmp_path / "back")
    for name, array in load_file(source / "model.safetensors").items():
        assert back.read(name).tobytes() == array.astype(dtype).tobytes()


def test_dtypes_of_their_own_stay(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights[NORM] = weights[NORM].astype(np.float32)
    save_file(weights, model / "model.safetensors")
    report = convert(model, tmp_path / "out", to="hf")
    assert report.dtypes == {"float16": 16, "float32": 1}
    assert "torch_dtype" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_value_that_the_dtype_cannot_hold_is_named(model: Path, tmp_path: Path) -> None:
    weights = {n: a.astype(np.float32) for n, a in load_file(model / "model.safetensors").items()}
    weights[NORM][0] = 1e6
    save_file(weights, model / "model.safetensors")
    for to, name in FORMATS.items():
        refuse(model, tmp_path / name, f"{NORM} has values that float16", to=to, dtype="float16")


def test_a_training_runs_state_is_left_out_and_counted(ckpt: Path, tmp_path: Path) -> None:
    reader = MindSporeCkptFile(ckpt)
    weights = {name: reader.read(name) for name in reader.tensors}
    state = {f"{kind}.{n}": a for kind in ("adam_m", "adam_v") for n, a in weights.items()}
    more = {
        "epoch_num": np.array(3, np.int32),
        "loss_scale": np.ones(1, np.float32),
        "a.b.nobody": np.ones(2),
    }
    write_ckpt(ckpt.with_name("run.ckpt"), {**state, **weights, **more})
    report = convert(ckpt.with_name("run.ckpt"), tmp_path / "out", to="hf")
    assert (report.training_state, report.unknown) == (36, ("a.b.nobody",))
    convert(ckpt, tmp_path / "without", to="hf")
    assert arrays_of(HuggingFaceDirectory(tmp_path / "out")) == arrays_of(
        HuggingFaceDirectory(tmp_path / "without")
    )


def test_the_bundled_model_is_converted_by_its_name_and_recognised_by_its_shapes(
    tmp_path: Path,
) -> None:
    convert("tiny", tmp_path / "tiny.ckpt", to="mindspore")
    report = convert(tmp_path / "tiny.ckpt", tmp_path / "out", to="hf")
    assert report.model == "the preset tiny, by its shapes"
    assert open_model(tmp_path / "out").config == open_model("tiny").config
    assert arrays_of(open_model(tmp_path / "out").checkpoint) == arrays_of(
        open_model("tiny").checkpoint
    )


def test_a_finetune_runs_result_is_converted_without_its_optimizer(tmp_path: Path) -> None:
    made(tmp_path / "run" / "result")
    save_file({"exp_avg.x": np.ones(2)}, tmp_path / "run" / "result" / "optimizer.safetensors")
    report = convert(tmp_path / "run", tmp_path / "out", to="hf")
    assert (report.tensors, report.model) == (17, str(tmp_path / "run" / "result" / "config.json"))


ADAPTED = "transformer.encoder.layers.0.self_attention.query_key_value"


def write_adapter(path: Path, base: Path) -> dict[str, HostArray]:
    """A LoRA adapter of all layers; returns its matrices."""
    path.mkdir()
    values = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["query_key_value"],
        "base_model_name_or_path": str(base),
    }
    (path / "adapter_config.json").write_text(json.dumps(values))
    rng = np.random.default_rng(0)
    matrices = {}
    for layer in range(CONFIG.num_layers):
        name = f"base_model.model.{ADAPTED.replace('.0.', f'.{layer}.')}"
        for half, shape in (("A", (2, 8)), ("B", (CONFIG.qkv_size, 2))):
            matrices[f"{name}.lora_{half}.weight"] = rng.standard_normal(shape).astype(np.float32)
    save_file(matrices, path / "adapter_model.safetensors")
    return matrices


def test_an_adapter_is_merged_in_its_bases_dtype(tmp_path: Path) -> None:
    base, adapter = made(tmp_path / "base"), tmp_path / "adapter"
    matrices = write_adapter(adapter, base)
    report = convert(adapter, tmp_path / "out", to="hf")
    assert report.dtypes == {"float16": 17}
    assert report.model == f"the base model of {adapter}"
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    a, b = (matrices[f"base_model.model.{ADAPTED}.lora_{half}.weight"] for half in "AB")
    before = HuggingFaceDirectory(base).read(f"{ADAPTED}.weight").astype(np.float32)
    after = HuggingFaceDirectory(tmp_path / "out").read(f"{ADAPTED}.weight")
    assert after.tobytes() == (before + np.float32(2) * (b @ a)).astype(np.float16).tobytes()


def test_a_config_is_taken_from_beside_from_an_option_or_from_a_preset(
    ckpt: Path, tmp_path: Path
) -> None:
    config = ckpt.parent / "config.json"
    report = convert(ckpt, tmp_path / "1", to="hf")
    assert report.model == str(config)
    config = config.rename(tmp_path / "other.json")
    refuse(ckpt, tmp_path / "2", r"pass its config\.json, or put it beside")
    assert convert(ckpt, tmp_path / "2", to="hf", config=config).model == str(config)
    refuse(ckpt, tmp_path / "3", "lacks transformer.encoder.layers.2", config="tiny")
    refuse(ckpt, tmp_path / "3", "no config 'tin'", error=InvalidConfigError, config="tin")
    config.write_text("{}")
    refuse(ckpt, tmp_path / "3", "unknown architecture", error=InvalidConfigError, config=config)


def without(name: str) -> Callable[[dict[str, HostArray]], object]:
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(NORM), f"lacks {NORM}"),
        (lambda w: w.update({NORM: np.ones(9, np.float16)}), r"has shape \[9\]"),
        (lambda w: w.update({NORM: np.ones(8, np.int8)}), f"{NORM} is i.*8; convert it"),
        (lambda w: w.update({TABLE: w[EMBEDDING]}), "one weight twice"),
        (lambda w: w.update({"x.lora_A.weight": np.ones(2)}), "LoRA matrices"),
    ],
)
def test_weights_that_do_not_make_the_model_are_named(
    change: Callable[[dict[str, HostArray]], object], words: str, model: Path, tmp_path: Path
) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors")
    for to, name in FORMATS.items():
        refuse(model, tmp_path / name, words, to=to)


def test_sources_that_cannot_be_used_are_named(ckpt: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refuse(tmp_path / "nowhere", out, "no model directory")
    refuse(model / "config.json", out, "is no file of weights")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", out, r"it holds nothing.*pass the directory or the file of a model")
    shutil.copy(ckpt, ckpt.with_name("second.ckpt"))
    refuse(ckpt.parent, out, r"more than once \(glm3.ckpt, second.ckpt\); pass a file")
    (tmp_path / "ranks" / "rank_0").mkdir(parents=True)
    refuse(tmp_path / "ranks", out, "merge it first")
    shutil.copy(ckpt, model)
    refuse(model, out, "more than once")


def test_a_directory_of_one_ckpt_is_its_file(ckpt: Path, tmp_path: Path) -> None:
    assert convert(ckpt.parent, tmp_path / "out", to="hf").tensors == 17


def test_damaged_sources_are_refused(ckpt: Path, model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    for path, source in ((weights, model), (ckpt, ckpt)):
        path.write_bytes(path.read_bytes()[:-5])
        refuse(source, tmp_path / "out", "truncated|no .ckpt file|is not read|bytes of tensor")
    weights.unlink()
    write_archive(model / "pytorch_model.bin", b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", {})
    refuse(model, tmp_path / "out", r"os\.system.*nothing was run", error=UnsafeCheckpointError)
    write_archive(model / "pytorch_model.bin", pickled({}), {})
    refuse(model, tmp_path / "out", "lacks")
    with zipfile.ZipFile(model / "pytorch_model.bin", "w") as archive:
        archive.writestr("x", b"")
    refuse(model, tmp_path / "out", "not a torch checkpoint")


def test_a_flipped_byte_of_a_torch_file_is_found_and_nothing_is_left(
    model: Path, tmp_path: Path
) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    write_torch(path, weights)
    content = path.read_bytes()
    place = content.index(weights[NORM].tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for to, name in FORMATS.items():
        refuse(model, tmp_path / name, f"{NORM} do not have their checksum", to=to)


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_source_that_differs_from_its_known_sum_does_not_come_out_as_sound(
    model: Path, tmp_path: Path
) -> None:
    steps = {to: tmp_path / "sound" / name for to, name in FORMATS.items()}
    for to, path in steps.items():
        convert(model, path, to=to)
        file = path / "model.safetensors" if to == "hf" else path
        flip_last_byte(file)
        shutil.copy(model / "config.json", tmp_path / "sound")
        refuse(path, tmp_path / "out", f"{file} is not what was written: its sha256 is")
    (steps["mindspore"].parent / "m.safetensors").unlink()
    refuse(steps["mindspore"].parent, tmp_path / "out", r"m\.ckpt is not what was written")
    assert not convert(steps["hf"], tmp_path / "out", to="hf", verify=False).verified


def test_an_adapter_is_not_merged_with_a_base_that_differs_from_its_known_sum(
    model: Path, tmp_path: Path
) -> None:
    convert(model, tmp_path / "base", to="hf")
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    convert(tmp_path / "adapter", tmp_path / "merged", to="hf")
    flip_last_byte(tmp_path / "base" / "model.safetensors")
    refuse(tmp_path / "adapter", tmp_path / "out", r"base/model\.safetensors is not what was")


def test_a_manifest_that_names_files_elsewhere_is_refused(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "a", to="hf")
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"config.json"', '"../model/config.json"'))
    refuse(tmp_path / "a", tmp_path / "out", "which is not a file beside it")


def test_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refuse(model, mine, "is there already; move it away")
    refuse(model, mine / "thesis.txt", "is there already")
    refuse(model, model, "is there already")
    for to in ("mindspore", "mindspore-safetensors"):
        path = tmp_path / FORMATS[to]
        path.write_text("years of work")
        refuse(model, path, "is there already", to=to)
        path.unlink()
        path.with_name(path.name + ".sha256").write_text("years of work")
        refuse(model, path, "is there already", to=to)
    refuse(model, mine, r"is a directory.*pass .*mine/model\.ckpt", to="mindspore")


def test_an_empty_directory_is_taken(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert convert(model, tmp_path / "out", to="hf").verified


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("m.safetensors", "mindspore", r"does not end in \.ckpt"),
        ("m.ckpt", "mindspore-safetensors", r"does not end in \.safetensors"),
        (".m.ckpt", "mindspore", "begin with a dot"),
        (".out", "hf", "begin with a dot"),
    ],
)
def test_names_that_do_not_fit_the_format_are_refused(
    name: str, to: str, words: str, model: Path, tmp_path: Path
) -> None:
    refuse(model, tmp_path / name, words, to=to)


@pytest.mark.parametrize(
    "options", [{"to": "onnx"}, {"to": "hf", "dtype": "int8"}, {"to": "hf", "max_shard_bytes": 0}]
)
def test_options_that_are_none_are_refused(options: dict, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass"):
        convert(model, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == ["model"]


def test_too_little_room_is_told_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_230_000_000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(conversion, "_SLACK", 2 * 10**9)
    for to, name in FORMATS.items():
        refuse(
            model,
            tmp_path / name,
            r"has 1\.23 GB free and .* takes 0\.00 GB; free some space there",
            error=CheckpointWriteError,
            to=to,
        )


# A limit on a file's size is the disk that anybody can fill; it also fills while a shard is
# written, and not at once.
FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
from glm3sdk.bootstrap.conversion import convert
from glm3sdk.errors import CheckpointWriteError
for to, name in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        convert(sys.argv[1], name, to=to, dtype="float32")
    except CheckpointWriteError as exc:
        print(exc)
"""


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path) -> None:
    places = [part for to, name in FORMATS.items() for part in (to, str(tmp_path / "o" / name))]
    (tmp_path / "o").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(model), *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(FORMATS)
    assert all("File too large; raise the limit" in line for line in lines)
    assert os.listdir(tmp_path / "o") == []


def test_a_destination_that_may_not_be_written_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for to, name in FORMATS.items():
        words = "a file is in the place of a directory; pass another path"
        refuse(model, tmp_path / "file" / name, words, error=CheckpointWriteError, to=to)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    for to, name in FORMATS.items():
        words = "Read-only file system; mount it for writing or write elsewhere"
        refuse(model, tmp_path / name, words, error=CheckpointWriteError, to=to)


class Interrupted(BaseException):
    """As Ctrl-C is."""


@contextmanager
def stopping_at(step: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress that stops the conversion when it is told for the step-th time."""
    count = 0

    def progress(_stage: str, _done: int, _total: int) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        yield progress


@pytest.mark.parametrize("step", [1, 9, 17, 18, 34])
@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupt_at_any_time_leaves_nothing(
    step: int, to: str, model: Path, tmp_path: Path
) -> None:
    with stopping_at(step) as progress:
        convert(model, tmp_path / FORMATS[to], to=to, progress=progress)
    assert os.listdir(tmp_path) == ["model"]


def test_progress_counts_what_is_written_and_then_what_is_checked(
    model: Path, tmp_path: Path
) -> None:
    size = 2 * CONFIG.parameter_count
    told: list[tuple[str, int, int]] = []
    convert(model, tmp_path / "1", to="hf", progress=lambda *at: told.append(at))
    assert {(stage, total) for stage, _, total in told} == {("writing", size), ("checking", size)}
    for stage in ("writing", "checking"):
        done = [at for name, at, _ in told if name == stage]
        assert done == sorted(done)
        assert (len(done), done[-1]) == (17, size)
    told.clear()
    report = convert(
        model, tmp_path / "2", to="hf", verify=False, progress=lambda *at: told.append(at)
    )
    assert not report.verified
    assert {stage for stage, _, _ in told} == {"writing"}
    told.clear()
    convert(tmp_path / "1", tmp_path / "3", to="hf", progress=lambda *at: told.append(at))
    known = (tmp_path / "1" / "model.safetensors").stat().st_size
    assert told[0] == ("reading", known, known)
    assert {stage for stage, _, _ in told[1:]} == {"writing", "checking"}


@pytest.mark.parametrize("to", FORMATS)
def test_a_byte_that_flips_after_it_was_written_is_found_and_nothing_is_left(
    to: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped: list[Path] = []

    def flip(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        flipped.append(path)

    monkeypatch.setattr(conversion, "forget_pages", flip)  # called before anything is read back
    with pytest.raises(Glm3Error, match=r"not what was written.*sha256"):
        convert(model, tmp_path / FORMATS[to], to=to)
    assert len(flipped) == 1
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_tensor_that_comes_back_changed_is_found_though_the_file_is_whole(
    to: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that puts a tensor's bytes in another's place is found by reading it."""

    def reversing(write: Callable) -> Callable:
        return lambda path, specs, values, **more: write(
            path, specs, ((n, v[::-1] if n == NORM else v) for n, v in values), **more
        )

    for owner, name in (
        (conversion, "write_mindspore_ckpt"),
        (conversion, "write_safetensors"),
        (staged_writer, "write_safetensors"),
    ):
        monkeypatch.setattr(owner, name, reversing(getattr(owner, name)))
    with pytest.raises(CheckpointWriteError, match=f"bytes of {NORM} came back changed"):
        convert(model, tmp_path / FORMATS[to], to=to)
    assert os.listdir(tmp_path) == ["model"]


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryBlobStore:
    store = MemoryBlobStore()
    register_blobs(monkeypatch, lambda: store)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return store


def test_a_model_is_converted_to_a_uri_and_from_one(
    blobs: MemoryBlobStore, model: Path, tmp_path: Path
) -> None:
    tokenizer = open_model("tiny").tokenizer_path
    assert tokenizer is not None
    shutil.copy(tokenizer, model)  # a fetch would not take any other bytes
    report = convert(model, "memory://bucket/glm3", to="hf", max_shard_bytes=1000)
    assert report.destination == "memory://bucket/glm3"
    written = {blob.uri.rsplit("/", 1)[1]: blob for blob in blobs.list("memory://bucket/glm3")}
    assert {file.name for file in report.files} == written.keys() - {"manifest.json"}
    for file in report.files:
        blob = written[file.name]
        assert hashlib.sha256(blobs.read(blob, 0, blob.size)).hexdigest() == file.sha256
    stored = checkpoint_store("memory://bucket/glm3").open("memory://bucket/glm3")
    assert arrays_of(stored) == arrays_of(HuggingFaceDirectory(model))
    convert("memory://bucket/glm3", tmp_path / "m.ckpt", to="mindspore")
    assert len(MindSporeCkptFile(tmp_path / "m.ckpt").tensors) == 17
    refuse(model, "memory://bucket/glm3", "is there already; remove it or pass another URI")
    refuse(model, "memory://bucket/m.ckpt", "one local file; write it here", to="mindspore")
    with stopping_at(30) as progress:
        convert(model, "memory://bucket/other", to="hf", progress=progress)
    assert [blob.uri for blob in blobs.list("memory://bucket/other")] == []


def test_what_was_sent_before_a_kill_is_no_obstacle_and_is_not_sent_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def tell(step: str) -> None:
        if step.startswith("before writing"):
            written.append(step.rsplit("/", 1)[1])
            if written == ["config.json", "tokenizer.model"]:
                raise KeyboardInterrupt

    blobs = PassingBlobs(MemoryBlobStore(), tell)
    register_blobs(monkeypatch, lambda: blobs)
    with pytest.raises(KeyboardInterrupt):
        convert(model, "memory://bucket/glm3", to="hf")
    assert [blob.uri.rsplit("/", 1)[1] for blob in blobs.list("memory://bucket")] == ["config.json"]
    assert convert(model, "memory://bucket/glm3", to="hf").verified
    assert written.count("config.json") == 1
    blobs.write("memory://bucket/mine/data-0123456789abcdef/a/thesis.txt", b"years of work")
    refuse(model, "memory://bucket/mine", "is there already")


def test_memory_is_bounded_by_a_tensor(tmp_path: Path) -> None:
    """A model of 57 MB, its largest tensor 2 MB, is converted both ways in half of that."""
    script = """
import resource, sys
from pathlib import Path
from glm3sdk.bootstrap.conversion import convert
from glm3sdk.domain.model import Glm3Config
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2] + "/m.ckpt", to="mindspore")
convert(sys.argv[2] + "/m.ckpt", sys.argv[2] + "/back", to="hf", config=sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    config = Glm3Config(
        num_layers=12,
        hidden_size=512,
        ffn_hidden_size=1024,
        num_attention_heads=8,
        kv_channels=64,
        padded_vocab_size=2048,
    )
    write_random_checkpoint(tmp_path / "model", config, dtype="float16")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 28  # MB
