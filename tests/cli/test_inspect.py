from __future__ import annotations

import hashlib
import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.mindspore_ckpt import write_mindspore_ckpt
from glm3sdk.bootstrap.models import model_directory
from glm3sdk.cli.app import app
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.published_models import PUBLISHED_MODELS, PublishedFile, PublishedModel
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
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
GOLDEN = Path(__file__).parents[1] / "golden"


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], prog_name="glm3")


def inspected(path: object, *options: str) -> dict[str, Any]:
    result = glm3("inspect", path, "--json", *options)
    assert result.exit_code == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def verified(path: object, *options: str, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    """What verify found, by file."""
    result = glm3("verify", path, "--json", *options)
    assert result.exit_code == exit_code, result.output
    values = json.loads(result.stdout)
    assert values["ok"] is (exit_code == 0)
    return {check["file"]: check for check in values["files"]}


def specs_of(tensors: dict[str, HostArray]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype.name) for name, array in tensors.items()}


def publish(path: Path, files: dict[str, bytes], **tensors: dict[str, HostArray]) -> None:
    writer = LocalCheckpointStore().create(str(path))
    for name, data in files.items():
        writer.add_file(name, data)
    for name, arrays in tensors.items():
        writer.add_tensors(f"{name}.safetensors", specs_of(arrays), arrays.items())
    writer.commit()


def write_ckpt(path: Path, tensors: dict[str, HostArray], *, digest: bool = True) -> None:
    entry = write_mindspore_ckpt(path, specs_of(tensors), tensors.items())
    if digest:
        path.with_name(path.name + ".sha256").write_text(f"{entry.sha256}  {path.name}\n")


def adapter_files(base: str) -> dict[str, bytes]:
    return {"adapter_config.json": json.dumps(Lora(rank=2).to_peft(base=base)).encode()}


def adapter_tensors(config: Glm3Config) -> dict[str, HostArray]:
    return {
        name: np.ones(shape, np.float32)
        for pair in Lora(rank=2).pairs(config)
        for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b))
    }


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_the_bundled_model_is_described_in_lines():
    result = glm3("inspect", "tiny")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].endswith("tiny: a directory in Hugging Face layout")
    assert "tiny: 4 layers, hidden 256, vocabulary 2,048, 3,952,896 parameters" in lines[1]
    assert any("model.safetensors, 7.9 MB" in line for line in lines)
    assert result.stderr == ""


def test_a_hugging_face_directory_is_inspected_from_its_headers(tmp_path: Path):
    write_random_checkpoint(tmp_path, CONFIG, shards=3, dtype="bfloat16")
    found = inspected(tmp_path, "--tensors")
    assert found["format"] == "hugging-face"
    assert found["model"]["num_layers"] == 2
    assert found["model"]["parameters"] == CONFIG.parameter_count == found["elements"]
    assert found["dtypes"] == {
        "bfloat16": {"tensors": found["tensor_count"], "bytes": 2 * CONFIG.parameter_count}
    }
    assert found["files"]["config.json"] == (tmp_path / "config.json").stat().st_size
    assert found["tensors"]["transformer.output_layer.weight"] == {
        "shape": [16, 8],
        "dtype": "bfloat16",
    }
    listed = glm3("inspect", tmp_path, "--tensors").stdout.splitlines()
    assert "transformer.output_layer.weight  [16, 8]  bfloat16" in listed


def test_a_ckpt_of_mindformers_is_recognised_without_mindspore(tmp_path: Path):
    weights = random_weights(Glm3Config.preset("tiny"), dtype="float16")
    renamed = {
        name.replace("word_embeddings.weight", "embedding_table"): array
        for name, array in weights.items()
    }
    write_ckpt(tmp_path / "glm3.ckpt", renamed | {"adam_m.x": np.ones(1), "step": np.array(3)})
    script = (
        "import sys; from glm3sdk.bootstrap.inspection import inspect_model, verify_model\n"
        f"found = inspect_model({str(tmp_path / 'glm3.ckpt')!r})\n"
        "assert found.model.presets == ('tiny',), found.model\n"
        "assert found.model.unknown == ('adam_m.x',) and found.model.state == ('step',)\n"
        f"assert all(c.state == 'ok' for c in verify_model({str(tmp_path / 'glm3.ckpt')!r}))\n"
        "assert not {'mindspore', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_state_of_a_training_run_is_told_from_weights(tmp_path: Path):
    weights = random_weights(CONFIG)
    moments = {f"exp_avg.{name}": array for name, array in weights.items()}
    config = json.dumps(CONFIG.to_hugging_face()).encode()
    publish(tmp_path / "c", {"config.json": config}, model=weights, optimizer=moments)
    found = inspected(tmp_path / "c")
    assert found["format"] == "published"
    assert sorted(found["model"]["training_state"]) == sorted(moments)
    assert found["model"]["missing"] == found["model"]["unknown"] == []
    assert set(found["files"]) == {"config.json", "model.safetensors", "optimizer.safetensors"}


def test_an_adapter_is_described_by_its_config(tmp_path: Path):
    publish(tmp_path / "a", adapter_files("tiny"), adapter_model={"x": np.ones(1)})
    found = inspected(tmp_path / "a")
    assert (found["format"], found["base"], found["model"]) == ("lora", "tiny", None)
    assert found["adapter"] == {"rank": 2, "alpha": 32.0, "targets": ["query_key_value"]}
    assert "of tiny: rank 2, alpha 32, on query_key_value" in glm3("inspect", tmp_path / "a").stdout


@pytest.mark.parametrize("published", [True, False])
def test_an_adapter_is_compared_with_its_base_model(tmp_path: Path, published: bool):
    write_random_checkpoint(tmp_path / "base", CONFIG)
    tensors = adapter_tensors(CONFIG)
    for number, change in enumerate(({}, {next(iter(tensors)): np.ones((2, 7), np.float32)})):
        path = tmp_path / f"a{number}"
        publish(path, adapter_files("../base"), adapter_model=tensors | change)
        if not published:
            (path / "manifest.json").unlink()
    found = verified(tmp_path / "a0")
    assert found["the tensors"]["compared"] == ["names and shapes of the base model"]
    broken = verified(tmp_path / "a1", exit_code=2)
    assert "has shape [2, 7], and the base model asks for [2, 8]" in broken["the tensors"]["error"]


def test_of_a_run_the_result_is_inspected_and_all_of_it_is_verified(tmp_path: Path):
    run, weights = tmp_path / "run", random_weights(CONFIG)
    config = json.dumps(CONFIG.to_hugging_face()).encode()
    for name in ("result", "checkpoints/step-00000002", "checkpoints/step-00000004"):
        publish(run / name, {"config.json": config}, model=weights)
    found = glm3("inspect", run)
    assert found.stdout.startswith(f"{run / 'result'}: ")
    assert "it holds result, checkpoints/step-00000002, checkpoints/step-00000004" in found.stderr
    assert all(check["state"] == "ok" for check in verified(run).values())
    flip(run / "checkpoints/step-00000002/model.safetensors")
    (run / "result" / "manifest.json").write_text("{")
    checks = verified(run, exit_code=2)
    assert [name for name, check in checks.items() if check["state"] == "damaged"] == [
        "result",
        "checkpoints/step-00000002/model.safetensors",
    ]
    assert checks["checkpoints/step-00000004/model.safetensors"]["state"] == "ok"
    assert "(2 are damaged)" in glm3("verify", run).stderr


def test_shares_of_ranks_are_listed_by_rank_and_each_file_is_verified(tmp_path: Path):
    for rank in range(2):
        (tmp_path / f"rank_{rank}").mkdir()
        write_ckpt(tmp_path / f"rank_{rank}" / f"c{rank}.ckpt", {"w": np.ones((2, 3))})
    found = inspected(tmp_path, "--tensors")
    assert found["format"] == "sharded"
    assert list(found["tensors"]) == ["rank_0/w", "rank_1/w"]
    assert "merge makes one checkpoint" in found["notes"][0]
    checks = verified(tmp_path, "--finite")
    assert checks["rank_1/c1.ckpt"]["compared"] == ["sha256 of c1.ckpt.sha256"]
    flip(tmp_path / "rank_1" / "c1.ckpt")
    assert "rank_1/c1.ckpt" in glm3("verify", tmp_path).stderr


def test_files_are_verified_line_by_line_and_it_is_said_what_nothing_is_known_of(tmp_path: Path):
    write_ckpt(tmp_path / "a.ckpt", {"w": np.ones((2, 3))})
    write_ckpt(tmp_path / "b.ckpt", {"w": np.ones((2, 3))}, digest=False)
    known, unknown = glm3("verify", tmp_path / "a.ckpt"), glm3("verify", tmp_path / "b.ckpt")
    assert known.exit_code == unknown.exit_code == 0
    assert known.stdout == "ok         a.ckpt (70 bytes): sha256 of a.ckpt.sha256\n"
    assert unknown.stdout == "no digest  b.ckpt (70 bytes): nothing to compare it with\n"
    assert known.stderr == unknown.stderr == ""


def damage_flip(model: Path) -> None:
    flip(model / "model.safetensors")


def damage_truncate(model: Path) -> None:
    os.truncate(model / "model.safetensors", 100)


def damage_remove(model: Path) -> None:
    (model / "model.safetensors").unlink()


def damage_config(model: Path) -> None:
    (model / "config.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (damage_flip, "model.safetensors", "its sha256 is"),
        (damage_truncate, "model.safetensors", "has 100 bytes and manifest.json says"),
        (damage_remove, "model.safetensors", "No such file"),
        (damage_config, "config.json", "has 2 bytes and manifest.json says"),
    ],
)
def test_damage_of_a_published_checkpoint_is_found(
    tmp_path: Path, damage: Callable[[Path], None], file: str, message: str
):
    config = json.dumps(CONFIG.to_hugging_face()).encode()
    publish(tmp_path / "m", {"config.json": config}, model=random_weights(CONFIG))
    damage(tmp_path / "m")
    result = glm3("verify", tmp_path / "m")
    assert result.exit_code == 2
    assert f"DAMAGED    {file}" in result.stdout
    assert result.stderr.startswith(f"glm3: error: {tmp_path / 'm' / file}")
    assert message in result.stderr


def test_a_hugging_face_directory_is_compared_with_its_config(tmp_path: Path):
    write_random_checkpoint(tmp_path, CONFIG, shards=2)
    assert verified(tmp_path)["the tensors"]["state"] == "ok"
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_layers": 3}))
    broken = verified(tmp_path, exit_code=2)
    assert "num_layers=3" in broken["the tensors"]["error"]
    os.truncate(tmp_path / "model-00002-of-00002.safetensors", 100)
    first = glm3("verify", tmp_path).stderr
    assert first.startswith(f"glm3: error: {tmp_path / 'model-00002-of-00002.safetensors'}")


@pytest.mark.parametrize("text", ["", "abc  m.ckpt\n", f"{'0' * 64}  other.ckpt\n", "\udcff"])
def test_a_sum_that_is_not_of_the_file_is_refused(tmp_path: Path, text: str):
    write_ckpt(tmp_path / "m.ckpt", {"w": np.ones(1)})
    (tmp_path / "m.ckpt.sha256").write_bytes(text.encode(errors="surrogateescape"))
    result = glm3("verify", tmp_path / "m.ckpt")
    assert result.exit_code == 2
    assert "m.ckpt.sha256" in result.stderr


def test_a_sum_of_sha256sum_in_binary_mode_is_read(tmp_path: Path):
    write_ckpt(tmp_path / "m.ckpt", {"w": np.ones(1)}, digest=False)
    found = hashlib.sha256((tmp_path / "m.ckpt").read_bytes()).hexdigest().upper()
    (tmp_path / "m.ckpt.sha256").write_text(f"{'0' * 64} *n.ckpt\n{found} *m.ckpt\n")
    assert verified(tmp_path / "m.ckpt")["m.ckpt"]["state"] == "ok"


def test_files_of_a_published_model_are_compared_with_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_random_checkpoint(tmp_path, CONFIG)
    data = (tmp_path / "model.safetensors").read_bytes()
    published = PublishedFile(len(data), hashlib.sha256(data).hexdigest())
    model = PublishedModel("glm3-6b", "owner/name", {"model.safetensors": published})
    monkeypatch.setitem(PUBLISHED_MODELS, "glm3-6b", model)
    found = verified(tmp_path)["model.safetensors"]
    assert found["compared"] == ["sha256 of what is known of glm3-6b"]
    flip(tmp_path / "model.safetensors")
    assert "what is known of glm3-6b says" in glm3("verify", tmp_path).stderr


def test_a_file_of_hugging_face_s_cache_is_compared_with_its_name_there(tmp_path: Path):
    blobs = tmp_path / "models--owner--name" / "blobs"
    model = tmp_path / "models--owner--name" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    write_random_checkpoint(model, CONFIG)
    weights = model / "model.safetensors"
    blob = blobs / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(f"../../blobs/{blob.name}")
    found = verified(model)["model.safetensors"]
    assert found["compared"] == ["sha256 of its name in the cache"]
    flip(blob)
    assert verified(model, exit_code=2)["model.safetensors"]["state"] == "damaged"


def test_what_torch_saved_is_compared_with_its_own_checksums(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes((GOLDEN / "torch_state_dict.bin").read_bytes())
    path = tmp_path / "pytorch_model.bin"
    assert inspected(path)["format"] == "torch"
    assert verified(path)["pytorch_model.bin"]["compared"] == ["its CRC-32s"]
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    flip(path, largest.header_offset + 200)
    assert verified(path, exit_code=2)["pytorch_model.bin"]["state"] == "damaged"


def test_a_fetched_model_of_torch_files_is_read_too(tmp_path: Path):
    config = json.dumps(CONFIG.to_hugging_face()).encode()
    weights = (GOLDEN / "torch_state_dict.bin").read_bytes()
    publish(tmp_path / "m", {"config.json": config, "pytorch_model.bin": weights})
    found = inspected(tmp_path / "m")
    assert (found["format"], found["tensor_count"] > 0) == ("published", True)
    assert "the checkpoint lacks" in glm3("verify", tmp_path / "m").stderr


def test_a_pickle_that_asks_for_a_command_is_refused_and_not_run(tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"w": Bomb()}, protocol=2))
    for command in ("inspect", "verify"):
        result = glm3(command, tmp_path / "m.bin")
        assert result.exit_code == 2
        assert "system" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_values_that_are_not_finite_are_found_where_they_are_asked_for(tmp_path: Path):
    write_ckpt(tmp_path / "m.ckpt", {"a": np.ones(3), "b": np.array([1, np.nan])})
    assert glm3("verify", tmp_path / "m.ckpt").exit_code == 0
    result = glm3("verify", tmp_path / "m.ckpt", "--finite")
    assert result.exit_code == 2
    assert "m.ckpt: tensor b has a NaN or an infinity" in result.stderr


def test_a_name_that_would_steer_the_terminal_is_shown_and_not_obeyed(tmp_path: Path):
    write_ckpt(tmp_path / "m.ckpt", {"\x1b[31mred": np.ones(1), "权重": np.ones(1)})
    shown = glm3("inspect", tmp_path / "m.ckpt", "--tensors").stdout
    assert "\x1b" not in shown
    assert r"\x1b[31mred" in shown
    assert "权重  [1]  float64" in shown


def test_a_model_at_a_uri_is_fetched_and_every_file_has_a_digest_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(model_directory("tiny"), tmp_path / "m")
    uri = (tmp_path / "m").as_uri()
    assert inspected(uri)["model"]["presets"] == ["tiny"]
    checks = verified(uri)
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert checks["model.safetensors"]["compared"] == ["sha256 of manifest.json"]


@pytest.mark.parametrize("metadata", [{"format": "ms"}, None])
def test_safetensors_for_mindspore_are_told_from_others(
    tmp_path: Path, metadata: dict[str, str] | None
):
    name = "x" if metadata else "transformer.embedding.embedding_table"
    save_file({name: np.ones((2, 2))}, tmp_path / "a.safetensors", metadata=metadata)
    save_file({"x": np.ones((2, 2))}, tmp_path / "b.safetensors")
    assert inspected(tmp_path / "a.safetensors")["format"] == "mindspore-safetensors"
    assert inspected(tmp_path / "b.safetensors")["format"] == "safetensors"


def test_a_bar_on_the_terminal_leaves_the_lines_to_the_pipe(tmp_path: Path):
    write_random_checkpoint(tmp_path, CONFIG)
    master, terminal = pty.openpty()
    program = "from glm3sdk.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "checkpoint", "verify", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        timeout=60,
        check=True,
    )
    os.close(terminal)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert [line.split(b":")[0] for line in result.stdout.splitlines()][-1].startswith(b"ok")
    assert len(result.stdout.splitlines()) == 3
    assert f"verifying {tmp_path}"[:20] in shown
    assert "no digest" not in shown


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, command: str):
    (tmp_path / "notes.txt").write_text("hello")
    for path, reason in (
        (tmp_path, "has no config.json, adapter_config.json, manifest.json or rank_0"),
        (tmp_path / "notes.txt", "is not known; pass a directory, or a file that ends in .ckpt"),
        (tmp_path / "nothing", "no model directory"),
    ):
        result = glm3(command, path)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
        assert result.stdout == ""
