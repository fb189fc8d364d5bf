"""`glm3 convert`: what it says and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli.terminal import Terminal
from click.testing import CliRunner, Result
from reference.torch_files import write_archive
from safetensors.numpy import load_file, save_file

from glm3sdk.cli.app import app
from glm3sdk.domain.model import Glm3Config
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
SIZE = 2 * CONFIG.parameter_count


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], prog_name="glm3")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "model", CONFIG, dtype="float16")
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"pieces")
    return tmp_path / "model"


def test_it_says_what_it_wrote_and_what_to_do_next(model: Path, tmp_path: Path):
    out = tmp_path / "a model"
    result = glm3(model, out, "--to", "hf")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"wrote 17 tensors (17 float16; 2.6 kB) to {out} in ")
    assert lines[1] == "read back: names, shapes, dtypes and sha256 are right"
    assert [line.split()[1] for line in lines[2:-1]] == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]
    assert lines[-1] == f"chat with it: glm3 chat --model '{out}'"
    assert result.stderr == f"model: {model / 'config.json'}\n"


def test_a_file_for_mindspore_has_one_line_with_its_sum(model: Path, tmp_path: Path):
    result = glm3(model, tmp_path / "m.ckpt", "--to", "mindspore", "--no-verify")
    assert result.exit_code == 0, result.stderr
    done = subprocess.run(["sha256sum", "m.ckpt"], cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout.splitlines()[1:] == [f"  {done.stdout.decode().strip()}"]


def test_what_is_missing_or_left_out_is_said_on_standard_error(model: Path, tmp_path: Path):
    (model / "tokenizer.model").unlink()
    weights = load_file(model / "model.safetensors")
    weights |= {f"adam_m.{name}": array for name, array in weights.items()}
    weights["a.b.nobody"] = np.ones(2, np.float16)
    save_file(weights, model / "model.safetensors")
    result = glm3(model, tmp_path / "out", "--to", "safetensors")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[1:] == [
        "left out: 17 tensors of a training run's state",
        "left out, no part of the model: a.b.nobody",
        "the source has no tokenizer.model; put it there to chat",
    ]
    assert "chat with it" not in result.stdout


def test_json_is_one_object_and_nothing_else(model: Path, tmp_path: Path):
    result = glm3(model, tmp_path / "out", "--to", "hf", "--dtype", "float32", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    seconds = report.pop("seconds")
    files = report.pop("files")
    assert report == {
        "destination": str(tmp_path / "out"),
        "format": "hf",
        "tensors": 17,
        "bytes": 2 * SIZE,
        "dtypes": {"float32": 17},
        "model": str(model / "config.json"),
        "training_state": 0,
        "unknown": [],
        "verified": True,
    }
    assert 0 < seconds < 60
    assert {file["name"]: file["size"] for file in files} == {
        file.name: file.stat().st_size
        for file in (tmp_path / "out").iterdir()
        if file.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("size", "files"),
    [("1kB", 3), ("1000", 3), ("0.5KiB", 7), ("2GB", 1), ("1 GiB", 1), ("1t", 1), (f"{SIZE}B", 1)],
)
def test_the_size_of_a_shard_is_an_amount(size: str, files: int, model: Path, tmp_path: Path):
    assert glm3(model, tmp_path / "out", "--to", "hf", "--max-shard-size", size).exit_code == 0
    assert len(list((tmp_path / "out").glob("model*.safetensors"))) == files


def test_a_directory_of_a_file_alone_takes_its_config_from_elsewhere(model: Path, tmp_path: Path):
    (tmp_path / "ckpt").mkdir()
    assert glm3(model, tmp_path / "ckpt" / "m.ckpt", "--to", "mindspore").exit_code == 0
    result = glm3(tmp_path / "ckpt", tmp_path / "d", "--to", "hf", "--config", model)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "d" / "config.json").is_file()


@pytest.mark.parametrize("size", ["", "GB", "two", "-1GB", "0", "1PB", "1,5GB", "0.1"])
def test_a_size_that_is_none_is_a_mistake(size: str, model: Path, tmp_path: Path):
    result = glm3(model, tmp_path / "out", "--to", "hf", "--max-shard-size", size)
    assert result.exit_code == 2
    assert "is not an amount such as 2GB, 500MB or 2GiB" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_a_mistake_that_names_the_global(model: Path, tmp_path: Path):
    (model / "model.safetensors").unlink()
    code = b"cposix\nsystem\n(X\x09\x00\x00\x00touch ran\x74R."
    write_archive(model / "pytorch_model.bin", code, {})
    result = glm3(model, tmp_path / "out", "--to", "hf")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"glm3: error: {model / 'pytorch_model.bin'} names posix.system"
    )
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["model"]
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onnx"], "Invalid value for '--to'"),
        ([], "Missing option '--to'"),
        (["--to", "hf", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["--to", "mindspore"], "does not end in .ckpt"),
        (["--to", "hf", "--config", "tiny"], "lacks transformer.encoder.layers.2"),
    ],
)
def test_mistakes_leave_nothing(options: list[str], words: str, model: Path, tmp_path: Path):
    result = glm3(model, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert os.listdir(tmp_path) == ["model"]


def test_a_terminal_shows_a_bar_for_each_part(model: Path, tmp_path: Path):
    command = ["-m", "glm3sdk", "convert", str(model), str(tmp_path / "m.ckpt")]
    with Terminal([*command, "--to", "mindspore"]) as terminal:
        assert terminal.exit_code() == 0
        for words in ("writing", "checking", "2.6/2.6 kB", "wrote 17 tensors"):
            assert words in terminal.transcript


# What waits is put in before anything that starts threads is imported: see cli/interrupts.py.
WAITING = """
import signal, sys
from contextlib import contextmanager
from glm3sdk.cli import convert, main

@contextmanager
def bars():
    yield lambda *_: (print("a tensor was read", flush=True), signal.pause())

convert.byte_bars = bars
main(sys.argv[1:])
"""


@pytest.mark.parametrize("to", ["hf", "mindspore", "mindspore-safetensors"])
def test_ctrl_c_leaves_nothing(to: str, model: Path, tmp_path: Path):
    name = {"hf": "d", "mindspore": "m.ckpt", "mindspore-safetensors": "m.safetensors"}[to]
    command = ["-c", WAITING, "convert", str(model), str(tmp_path / name), "--to", to]
    with Terminal(command) as terminal:
        terminal.until("a tensor was read")
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.transcript
    assert os.listdir(tmp_path) == ["model"]


def test_a_model_for_openvino_says_how_to_chat_with_it(model: Path, tmp_path: Path):
    out = tmp_path / "small"
    result = glm3(model, out, "--to", "openvino", "--quantize", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["format"], report["verified"]) == ("openvino", True)
    # Ten matrices in int8, and a scale of each beside the seven norms and biases.
    assert report["dtypes"] == {"float32": 17, "int8": 10}
    again = glm3(model, tmp_path / "none", "--to", "openvino", "--quantize", "none")
    assert again.stdout.splitlines()[-1].startswith("chat with it: glm3 chat --model ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "openvino", "--dtype", "float16"), "--dtype means nothing for --to openvino"),
        (("--to", "openvino", "--max-shard-size", "1GB"), "--max-shard-size means nothing"),
        (("--to", "hf", "--quantize", "int8"), "--quantize means nothing for --to hf"),
        (("--to", "openvino", "--quantize", "int3"), "'int3' is not one of"),
    ],
)
def test_an_option_of_another_format_is_refused(
    model: Path, tmp_path: Path, options: tuple[str, ...], message: str
):
    result = glm3(model, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
