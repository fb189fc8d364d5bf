from __future__ import annotations

import hashlib
import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from cli.terminal import Terminal
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from sharded import Arrays, numbered

from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile
from glm3sdk.adapters.storage.strategy_file import encode_strategy
from glm3sdk.adapters.storage.tensor_file import write_tensor_file
from glm3sdk.cli.app import app
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

TENSORS = {"w": numbered((4, 6), np.float16), "b": numbered((4,))}


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="glm3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint as the only rank's, and strategies for two ranks and for four."""
    for name, layout in {"two": Layout([2], [0]), "four": Layout([4], [0])}.items():
        layouts = {"w": Layout(layout.dev_matrix, [0, -1]), "b": layout}
        (tmp_path / f"{name}.ckpt").write_bytes(encode_strategy(Strategy((layouts,))))
    whole = tmp_path / "whole" / "rank_0" / "x.ckpt"
    whole.parent.mkdir(parents=True)
    write_tensor_file(whole, Arrays(TENSORS), on_bytes=lambda _: None)
    return tmp_path


def test_a_checkpoint_is_split_laid_out_anew_and_merged(folder: Path):
    two, four = folder / "two.ckpt", folder / "four.ckpt"
    whole = folder / "whole" / "rank_0" / "x.ckpt"
    split = glm3("checkpoint", "split", whole, folder / "a", "--strategy", two)
    assert split.exit_code == 0, split.stderr
    told = f"read 1 file, wrote 2 files (2 tensors, {size(folder / 'a')} bytes)"
    assert split.stdout == f"{told} to {folder / 'a'}\n"
    assert split.stderr == ""
    options = ("--strategy", four, "--src-strategy", two, "--prefix", "p", "--check-replicas")
    anew = glm3("checkpoint", "split", folder / "a", folder / "b", *options)
    assert anew.exit_code == 0, anew.stderr
    names = {str(path.relative_to(folder / "b")) for path in (folder / "b").rglob("*.ckpt")}
    assert names == {f"rank_{rank}/p{rank}.ckpt" for rank in range(4)}
    merged = glm3("checkpoint", "merge", folder / "b", folder / "m.ckpt", "--strategy", four)
    assert merged.exit_code == 0, merged.stderr
    assert (folder / "m.ckpt").read_bytes() == whole.read_bytes()


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A small ChatGLM3 as the checkpoint of two ranks, which share every matrix."""
    small = attrs.evolve(Glm3Config.preset("tiny"), num_layers=1, padded_vocab_size=320)
    write_random_checkpoint(tmp_path / "model", small, dtype="float16")
    whole = tmp_path / "whole.ckpt"
    assert glm3("convert", tmp_path / "model", whole, "--to", "mindspore").exit_code == 0
    layouts = {
        name: Layout([2], [0, -1] if len(spec.shape) == 2 else [-1])
        for name, spec in MindSporeCkptFile(whole).tensors.items()
    }
    (tmp_path / "s.ckpt").write_bytes(encode_strategy(Strategy((layouts,))))
    split = glm3(
        "checkpoint", "split", whole, tmp_path / "ranks", "--strategy", tmp_path / "s.ckpt"
    )
    assert split.exit_code == 0, split.stderr
    return tmp_path


def test_a_sharded_model_is_merged_into_a_directory(ranks: Path):
    command = ("checkpoint", "merge", ranks / "ranks", ranks / "hf", "--strategy", ranks / "s.ckpt")
    options = ("--to", "hf", "--config", ranks / "model" / "config.json", "--check-replicas")
    merged = glm3(*command, *options, "--json")
    assert merged.exit_code == 0, merged.stderr
    report = json.loads(merged.stdout)
    assert (report["format"], report["verified"]) == ("hf", True)
    expected, found = (load_file(ranks / each / "model.safetensors") for each in ("model", "hf"))
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_ranks_that_differ_are_not_merged_into_a_directory(ranks: Path):
    file = ranks / "ranks" / "rank_1" / "checkpoint_1.ckpt"
    arrays = {name: MindSporeCkptFile(file).read(name) for name in MindSporeCkptFile(file).tensors}
    norm = next(name for name, array in arrays.items() if array.ndim == 1)
    arrays[norm] = arrays[norm] + np.float16(1)
    for each in (file, file.with_name(f"{file.name}.sha256")):
        each.unlink()
    write_tensor_file(file, Arrays(arrays), on_bytes=lambda _: None)
    command = ("checkpoint", "merge", ranks / "ranks", ranks / "hf", "--strategy", ranks / "s.ckpt")
    options = ("--to", "hf", "--config", ranks / "model" / "config.json")
    result = glm3(*command, *options, "--check-replicas")
    assert (result.exit_code, result.stdout) == (2, "")
    assert norm in result.stderr
    assert not (ranks / "hf").exists()


def test_a_config_means_nothing_for_one_file(folder: Path):
    command = ("checkpoint", "merge", folder / "whole", folder / "m.ckpt", "--config", "glm3-6b")
    result = glm3(*command, "--strategy", folder / "two.ckpt")
    assert result.exit_code == 2
    assert "--config is for --to hf" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("merge", "", "x.ckpt", "--strategy", "s"),
        ("merge", "x", "x.ckpt", "--strategy", ""),
        ("split", "x.ckpt", "", "--strategy", "s"),
        ("transform", "--src_ckpt_dir", "x", "--dst_ckpt_dir", "", "--src_ckpt_strategy", "s"),
    ],
)
def test_an_empty_path_is_not_the_current_directory(arguments: tuple[str, ...]):
    result = glm3("checkpoint", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'' is no path; pass one" in result.stderr


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.ckpt"))


def test_json_tells_every_file(folder: Path):
    two = folder / "two.ckpt"
    split = glm3("checkpoint", "split", folder / "whole", folder / "a", "--strategy", two, "--json")
    report = json.loads(split.stdout)
    assert report | {"files": None} == {
        "path": str(folder / "a"),
        "source_ranks": 1,
        "ranks": 2,
        "bytes": size(folder / "a"),
        "left_out": [],
        "files": None,
    }
    for rank, file in enumerate(report["files"]):
        path = folder / "a" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt"
        data = path.read_bytes()
        assert file == {
            "path": str(path),
            "tensors": 2,
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def test_the_references_options_do_what_the_reference_does(folder: Path):
    def transform(source: str, out: str, **options: object) -> None:
        given = [part for name, value in options.items() for part in (f"--{name}", value)]
        directories = ("--src_ckpt_dir", folder / source, "--dst_ckpt_dir", folder / out)
        result = glm3("checkpoint", "transform", *directories, *given)
        assert result.exit_code == 0, result.stderr

    two, four = folder / "two.ckpt", folder / "four.ckpt"
    transform("whole", "a", dst_ckpt_strategy=two, src_ckpt_strategy="")
    transform("a", "b", src_ckpt_strategy=two, dst_ckpt_strategy=four, prefix="glm3_")
    transform("b", "c", src_ckpt_strategy=four, dst_ckpt_strategy="None")
    assert (folder / "b" / "rank_3" / "glm3_3.ckpt").is_file()
    merged = folder / "c" / "rank_0" / "checkpoint_0.ckpt"
    assert merged.read_bytes() == (folder / "whole" / "rank_0" / "x.ckpt").read_bytes()


def test_a_mistake_is_one_line_and_exit_code_two(folder: Path):
    extra = folder / "whole" / "rank_0" / "y.ckpt"
    extra.write_bytes(b"")
    merge = glm3("checkpoint", "merge", folder / "whole", folder / "m.ckpt", "--strategy", "none")
    assert merge.exit_code == 2
    assert "rank 0 has 2 checkpoint files" in merge.stderr
    assert ": x.ckpt, y.ckpt; leave exactly one" in merge.stderr
    assert merge.stderr.count("\n") == 1
    assert not (folder / "m.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("transform", "--src_ckpt_dir", "a", "--dst_ckpt_dir", "b"), "nothing to do without"),
        (("split", "a", "b", "--strategy", "s", "--check-replicas"), "pass --src-strategy too"),
        (("merge", "a", "b.ckpt"), "Missing option '--strategy'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: tuple[str, ...], message: str):
    result = glm3("checkpoint", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_terminal_shows_how_far_it_is(folder: Path):
    arguments = ("merge", folder / "whole", folder / "m.ckpt", "--strategy", folder / "one.ckpt")
    one = Strategy(({"w": Layout([1], [-1, -1])},))
    (folder / "one.ckpt").write_bytes(encode_strategy(one))
    terminal = Terminal(["-m", "glm3sdk", "checkpoint", *map(str, arguments)])
    with terminal:
        terminal.until("merging")
        terminal.until("wrote 1 file")
        assert terminal.exit_code() == 0
    assert (folder / "m.ckpt").is_file()
