"""`glm3 pull` and `glm3 cache`, and commands that fetch the model they need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.scripted import scripted_loaders
from cli.terminal import Terminal
from click.testing import CliRunner, Result

from glm3sdk.adapters.storage.model_cache import ModelCache, models_folder
from glm3sdk.bootstrap.models import model_directory
from glm3sdk.cli.app import app
from glm3sdk.domain.model import Glm3Config
from glm3sdk.testing import write_random_checkpoint

SMALL = Glm3Config(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=16,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=2048,
)


def glm3(*arguments: object, obj: object = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="glm3", obj=obj)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    for name in ("GLM3SDK_OFFLINE", "HF_HUB_OFFLINE", "GLM3SDK_MODEL_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "there", SMALL)
    shutil.copy(model_directory("tiny") / "tokenizer.model", tmp_path / "there")
    return tmp_path / "there"


def test_pull_tells_where_the_model_lies_and_what_was_compared(source: Path, cache: Path):
    first = glm3("pull", source.as_uri())
    assert (first.exit_code, first.stderr) == (0, "")
    assert f"{source.as_uri()} fetched: {cache}/" in first.stdout
    assert "3 files, " in first.stdout
    assert "digests: none were known, so only names, shapes and lengths" in first.stdout
    assert f"glm3 chat --model {source.as_uri()}" in first.stdout
    assert f"{source.as_uri()} is already there: {cache}/" in glm3("pull", source.as_uri()).stdout


def test_a_program_reads_what_was_pulled(source: Path):
    result = glm3("pull", source.as_uri(), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    values = json.loads(result.stdout)
    assert (values["digests"], values["already_there"]) == ("none", False)
    assert values["bytes"] == sum(file.stat().st_size for file in source.iterdir())
    assert sorted(values["files"]) == sorted(file.name for file in source.iterdir())
    assert all((Path(values["path"]) / name).is_file() for name in values["files"])


def test_mistakes_are_one_line_and_exit_code_2(source: Path, monkeypatch: pytest.MonkeyPatch):
    (source / "tokenizer.model").unlink()
    for arguments in (("pull", source), ("pull", "glm4"), ("cache", "prune", "glm4")):
        result = glm3(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("glm3: error: ")
        assert result.stderr.count("\n") == 1
    monkeypatch.setenv("GLM3SDK_OFFLINE", "1")
    result = glm3("chat", "hi", "--model", "glm3-6b")
    assert result.exit_code == 2
    assert "glm3-6b needs the network and GLM3SDK_OFFLINE=1 forbids its use" in result.stderr


def test_a_command_fetches_the_model_it_is_to_load(source: Path, cache: Path):
    loaded: list[dict[str, object]] = []
    result = glm3(
        "chat", "hi", "--model", source.as_uri(), obj=scripted_loaders("hello", loaded=loaded)
    )
    assert (result.exit_code, result.stdout.strip()) == (0, "hello")
    assert str(loaded[0]["model"]).startswith(f"{cache}/")


def test_the_cache_is_listed_and_pruned(source: Path, tmp_path: Path, cache: Path):
    other = tmp_path / "other"
    write_random_checkpoint(other, SMALL, seed=1)
    shutil.copy(source / "tokenizer.model", other)
    for place in (source, other):
        assert glm3("pull", place).exit_code == 0
    keys = sorted([source.as_uri(), other.as_uri()])
    listed = json.loads(glm3("cache", "list", "--json").stdout)
    assert [model["key"] for model in listed] == keys
    assert all(Path(model["path"]).is_dir() for model in listed)
    text = glm3("cache", "list").stdout
    assert f"{keys[0]}: " in text
    assert "no digests known" in text
    assert f"would remove {keys[0]}: " in glm3("cache", "prune", "--all", "--dry-run").stdout
    would = json.loads(glm3("cache", "prune", keys[1], "--dry-run", "--json").stdout)
    assert would == {"would_remove": [keys[1]]}
    assert len(json.loads(glm3("cache", "list", "--json").stdout)) == 2
    pruned = glm3("cache", "prune", keys[0])
    assert pruned.exit_code == 0
    assert f"removed {keys[0]}" in pruned.stdout
    assert [model["key"] for model in json.loads(glm3("cache", "list", "--json").stdout)] == [
        keys[1]
    ]
    assert glm3("cache", "prune", "--all", keys[1]).exit_code == 2
    with ModelCache(models_folder()) as using:
        assert using.find(keys[1]) is not None
        kept = glm3("cache", "prune", "--all")
        assert f"kept {keys[1]}: another process uses it" in kept.stderr
        kept = glm3("cache", "prune", "--all", "--json")
        assert json.loads(kept.stdout) == {"removed": [], "in_use": [keys[1]], "freed_bytes": 0}
    assert "freed" in glm3("cache", "prune").stdout
    files = [*(cache / "hub" / "models").glob("*/*"), *(cache / "hub" / "blobs").iterdir()]
    # A file with two names is there once.
    size = sum({found.st_ino: found.st_size for found in map(Path.stat, files)}.values())
    pruned = json.loads(glm3("cache", "prune", "--all", "--json").stdout)
    assert pruned == {"removed": [keys[1]], "in_use": [], "freed_bytes": size}
    assert "no models in the cache" in glm3("cache", "list").stderr
    assert not [file for file in (cache / "hub" / "blobs").iterdir() if file.name[0] != "."]


def test_a_terminal_shows_how_far_a_fetch_is(source: Path):
    with Terminal(["-m", "glm3sdk", "pull", source.as_uri()]) as terminal:
        shown = terminal.until("digests: none were known")
        assert terminal.exit_code() == 0
    assert f"fetching {source.as_uri()}" in shown
    size = sum(file.stat().st_size for file in source.iterdir())
    assert f"{size / 1000:.1f}/{size / 1000:.1f} kB" in shown
