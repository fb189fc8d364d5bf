"""What holds for every command: help, names of options, mistakes in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli.scripted import scripted_loaders
from click.testing import CliRunner, Result

from glm3sdk.bootstrap.models import model_directory
from glm3sdk.cli.app import app

# What an option of this name looks like, wherever it is.
_JSON_FLAG = {"--json"}
_SAME = {
    "--model": "MODEL",
    "--runtime": "NAME",
    "--config": None,
    "--set": "KEY=VALUE",
    "--max-new-tokens": "N",
    "--rank-table": "FILE",
    "--seed": "N",
}
_FOREIGN = {"transform", "generate"}  # they have MindFormers' and the reference's own names
_PLAIN = re.compile(r"-[a-z]|--[a-z0-9]+(-[a-z0-9]+)*")


def commands(
    command: click.Command = app, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(command.commands[name], (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands())
GROUPS = [(), *sorted({path[:1] for path in COMMANDS if len(path) > 1})]
every_command = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


def glm3(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, obj=scripted_loaders("x"), prog_name="glm3", input="")


def options(path: tuple[str, ...]) -> list[click.Option]:
    shown = [each for each in COMMANDS[path].params if isinstance(each, click.Option)]
    return [each for each in shown if not each.hidden]


def test_all_commands_of_the_design_are_there():
    names = {path[0] for path in COMMANDS}
    assert names >= {
        *("chat", "generate", "finetune", "evaluate", "dataset", "convert", "checkpoint", "pull"),
        *("rank-table", "launch", "plan", "serve", "bench", "doctor", "plugins", "completion"),
    }


@every_command
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example_and_a_short_line(path: tuple[str, ...], flag: str):
    result = glm3(*path, flag)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = result.stdout
    assert re.search(r"\n  Examples?:\n    .*\bglm3 " + " ".join(path), shown), shown
    assert 10 < len(COMMANDS[path].get_short_help_str(200)) <= 100


@every_command
def test_every_option_is_explained_and_named_alike(path: tuple[str, ...]):
    for option in options(path):
        assert option.help, option.opts
        for name in option.opts:
            if path[-1] not in _FOREIGN:
                assert _PLAIN.fullmatch(name), name
            expected = _SAME.get(name)
            assert expected in (None, option.metavar), name
        if _JSON_FLAG & {*option.opts}:
            assert option.is_flag
            assert option.name == "as_json"
        if option.metavar in ("FILE", "DIR", "PATH"):
            words = option.shell_complete(click.Context(COMMANDS[path]), "x")
            assert words, f"{option.opts} completes nothing"


@every_command
def test_an_unknown_option_is_a_mistake_with_its_usage(path: tuple[str, ...]):
    result = glm3(*path, "--no-such-option")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Usage: glm3 {' '.join(path)}" in result.stderr
    assert "No such option" in result.stderr


@pytest.mark.parametrize("group", GROUPS, ids=lambda path: " ".join(path) or "glm3")
def test_an_unknown_command_is_a_mistake(group: tuple[str, ...]):
    result = glm3(*group, "no-such-command")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no-such-command" in result.stderr
    assert "Traceback" not in result.stderr


# What is typed where a name or a file is expected.
# launch and serve start programs; the others take no free text that is required.
_UNTYPED = ("launch", "serve", "doctor", "completion")
TYPED = [path for path in COMMANDS if path[0] not in _UNTYPED and path != ("cache", "list")]
_BOGUS = ["", "no/such/thing", ".", "\udcff", "obs://", "x" * 5000]


@pytest.mark.parametrize("path", TYPED, ids=" ".join)
@pytest.mark.parametrize("bogus", _BOGUS, ids=lambda text: ascii(text[:20]))
def test_a_bogus_argument_is_never_a_traceback(
    path: tuple[str, ...], bogus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GLM3SDK_OFFLINE", "1")
    result = glm3(*path, *filled(path, bogus))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if result.exit_code:
        assert result.exit_code in (1, 2), result.output
        errors = [line for line in result.stderr.splitlines() if "rror:" in line]
        assert len(errors) == 1, result.stderr


def test_a_model_that_is_named_by_nothing_is_a_mistake():
    for arguments in (["checkpoint", "inspect", ""], ["convert", "", "x", "--to", "hf"]):
        assert "no model directory ''" in glm3(*arguments).stderr
    for uri in ("obs://", "file:///"):
        result = glm3("pull", uri)
        assert result.exit_code == 2
        assert f"{uri!r} says how to fetch and not what" in result.stderr


def test_a_place_that_holds_no_files_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch):
    converted = glm3("convert", "tiny", "/proc/x", "--to", "hf")
    assert converted.exit_code == 1
    assert "/proc can hold no files" in converted.stderr
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", "/proc/x")
    pulled = glm3("pull", str(model_directory("tiny")))
    assert pulled.exit_code == 1
    assert "can hold no files" in pulled.stderr


def test_a_number_of_any_size_is_never_a_traceback(tmp_path: Path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}]}', encoding="utf-8")
    huge = str(10**20)
    for arguments in (
        ["bench", "--batch", huge],
        ["bench", "--repeats", huge],
        ["serve", "--slots", huge],
        ["launch", "--nproc", huge, "--", "true"],
        ["evaluate", "--data", str(file), "--max-seq-length", huge],
        [
            "dataset",
            "inspect",
            str(file),
            "--format",
            "multiturn",
            "--tokenizer",
            "tiny",
            "--max-seq-length",
            huge,
        ],
    ):
        result = glm3(*arguments)
        assert result.exit_code == 2, arguments
        assert "is not in the range" in result.stderr


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def load(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 4.00 TiB")

    monkeypatch.setattr("glm3sdk.bootstrap.evaluation.load_evaluation", load)
    result = glm3("evaluate", "--data", "x", "--max-seq-length", "8")
    assert result.exit_code == 1
    assert result.stderr == "glm3: error: not enough memory: Unable to allocate 4.00 TiB\n"


@pytest.mark.parametrize("command", ["--help", "plugins"])
def test_a_full_disk_is_one_line(command: str):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "glm3sdk", command],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"glm3: error: No space left on device\n"


def filled(path: tuple[str, ...], value: str) -> list[str]:
    """Arguments in which everything that is required has a value."""
    words: list[str] = []
    for parameter in COMMANDS[path].params:
        if not parameter.required and isinstance(parameter, click.Option):
            continue
        given = value
        if isinstance(parameter.type, click.Choice):
            given = next(iter(parameter.type.choices))
        if isinstance(parameter, click.Option):
            words += [parameter.opts[0], given]
        else:
            words.append(given)
    return words
