from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from glm3sdk.cli.dataset import dataset
from glm3sdk.cli.loading import Loaders
from glm3sdk.testing import CharacterTokenizer

PAIR = {"content": "ab", "summary": "cde"}
ADGEN = ("--format", "adgen", "--max-source-length", "6", "--max-target-length", "5")


def glm3(*arguments: object) -> Result:
    loaders = Loaders(tokenizer=lambda path: CharacterTokenizer())
    return CliRunner().invoke(dataset, list(map(str, arguments)), obj=loaders)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n\n" + '{"content": "ab"}\n' + json.dumps(PAIR), "utf-8")
    return path


def test_inspect_reports_and_names_file_and_line(file: Path):
    result = glm3("inspect", file, "--tokenizer", "t", *ADGEN)
    assert result.exit_code == 0
    assert f"{file}: 2 records taken, 2 dropped" in result.stdout
    assert "seq_length 12: 0 records cut (0.0%)" in result.stdout
    assert f"{file}:3: dropped: missing key: 'summary'" in result.stderr


def test_inspect_needs_no_lengths_and_speaks_json(file: Path):
    result = glm3("inspect", file, "--tokenizer", "t", "--format", "adgen-chat", "--json")
    report = json.loads(result.stdout)
    assert (report["taken"], report["seq_length"], report["lengths"]["max"]) == (2, None, 12)
    assert report["dropped"][0] == {
        "kind": "empty line",
        "count": 1,
        "first": [{"line": 2, "kind": "empty line", "detail": ""}],
    }


def test_other_columns_can_be_named(file: Path):
    columns = ("--columns", "summary", "content")
    result = glm3("inspect", file, "--tokenizer", "t", "--format", "adgen", *columns)
    assert "2 records taken" in result.stdout


def test_encode_writes_both_arrays(file: Path, tmp_path: Path):
    out = tmp_path / "out.npz"
    result = glm3("encode", file, "--tokenizer", "t", *ADGEN, "--out", out)
    assert result.exit_code == 0, result.output
    with np.load(out) as arrays:
        assert sorted(arrays) == ["input_ids", "labels"]
        ids, labels = arrays["input_ids"], arrays["labels"]
    assert ids.dtype == labels.dtype == np.int32
    assert ids.shape == labels.shape == (2, 12)
    assert ids[1].tolist() == [260, 262, 100, 101, 102, 103, 104, 2, 0, 0, 0, 0]
    assert labels[1].tolist() == [-100] * 3 + [102, 103, 104, 2] + [-100] * 5


def test_encode_tells_a_program_what_it_wrote(file: Path, tmp_path: Path):
    out = tmp_path / "out.npz"
    result = glm3("encode", file, "--tokenizer", "t", *ADGEN, "-o", out, "--json")
    values = json.loads(result.stdout)
    with np.load(out) as arrays:
        assert values["shape"] == list(arrays["labels"].shape)
    assert values["output"] == str(out)


def test_encode_keeps_records_that_teach_nothing(tmp_path: Path):
    path, out = tmp_path / "data.jsonl", tmp_path / "out.npz"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a" * 99}]}), "utf-8")
    options = ("--format", "multiturn", "--max-seq-length", 16)
    result = glm3("encode", path, "--tokenizer", "t", *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{path}:1: no token of this record is trained" in result.stderr
    with np.load(out) as arrays:
        assert (arrays["labels"] == -100).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\0\n", "1: dropped: not JSON"),
        (b'{"content": 1, "summary": 2}', "1: dropped: wrong type: 'content' must be text, not 1"),
        (b"\xff\xfe", "1: dropped: not UTF-8"),
    ],
)
def test_a_file_without_records_is_a_mistake_and_writes_nothing(
    tmp_path: Path, content: bytes, message: str
):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    result = glm3("encode", path, "--tokenizer", "t", *ADGEN, "--out", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "adgen", "--max-seq-length", "9"), "not --max-seq-length"),
        (("--format", "multiturn", "--max-source-length", "9"), "takes --max-seq-length"),
        (("--format", "multiturn"), "max_seq_length is not set"),
        (("--format", "adgen", "--max-source-length", "9"), "max_target_length is not set"),
        (("--format", "csv"), "csv"),
    ],
)
def test_options_that_do_not_go_together_are_a_mistake(
    file: Path, tmp_path: Path, options: tuple[str, ...], message: str
):
    out = tmp_path / "out.npz"
    result = glm3("encode", file, "--tokenizer", "t", *options, "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_a_directory_is_a_mistake_as_input_and_as_output(file: Path, tmp_path: Path):
    for source, out in [(tmp_path, tmp_path / "o.npz"), (file, tmp_path), (file, "/none/o.npz")]:
        result = glm3("encode", source, "--tokenizer", "t", *ADGEN, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith("glm3: error: cannot ")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """A limit on the size of files: writing fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path, out = tmp_path / "data.jsonl", tmp_path / "out.npz"
    path.write_text(f"{json.dumps(PAIR)}\n" * 2000, "utf-8")
    out.write_bytes(b"old")
    with room_for(50_000):
        result = glm3("encode", path, "--tokenizer", "t", *ADGEN, "--out", out)
    assert result.exit_code == 1
    assert f"glm3: error: cannot write {out}" in result.stderr
    assert out.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.jsonl", "out.npz"]


STEP = [["f", "{}", "I need f.\nAction: f"], "fine"]
INSTANCE = {"input": "do", "intermediate_steps": [STEP], "Final Thought": "so", "output": "done"}
BROKEN = {**INSTANCE, "intermediate_steps": [[["f", "{", "x"], "y"]]}


def test_the_formatter_says_what_it_took_and_what_it_dropped(tmp_path: Path):
    path, out = tmp_path / "train.json", tmp_path / "out.jsonl"
    tool = {"Name": "F", "NLDocumentation": "f: does", "Instances": [INSTANCE, BROKEN]}
    path.write_text(json.dumps([tool]), "utf-8")
    result = glm3("format-tool-alpaca", path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "1 conversations taken, 1 dropped" in result.stdout
    assert "F, instance 1: the arguments of 'f' are not JSON" in result.stdout
    assert "turns x conversations: 4 x 1" in result.stdout
    size = len(out.read_text("utf-8")) - 1
    assert f"characters of a conversation: min {size}" in result.stdout
    assert json.loads(out.read_bytes())["conversations"][-1]["content"] == "so\ndone"
    in_tokens = glm3("format-tool-alpaca", path, "--out", out, "--tokenizer", "t")
    assert "tokens of a conversation: min" in in_tokens.stdout


def test_the_formatter_gives_the_published_file(shared_data: Path, tmp_path: Path):
    folder, out = shared_data / "toolalpaca", tmp_path / "out.jsonl"
    result = glm3("format-tool-alpaca", folder / "train_data.sample.json", "--out", out)
    assert "14 conversations taken, 1 dropped" in result.stdout
    assert out.read_bytes() == (folder / "tool_alpaca.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("{}", "expected ToolAlpaca's JSON list"),
        ("[]", "the list is empty"),
        ('[{"Name": "F"}]', "F: missing key: 'NLDocumentation'"),
    ],
)
def test_a_file_that_is_no_tool_alpaca_is_a_mistake(tmp_path: Path, content: str, message: str):
    path = tmp_path / "train.json"
    path.write_text(content, "utf-8")
    result = glm3("format-tool-alpaca", path, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert message in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.json"]
