from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from glm3sdk.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[2]


def completed(*words: str) -> list[tuple[str, str]]:
    """What is offered in place of the last word: kinds and values."""
    shell = ShellComplete(app, {}, "glm3", "_GLM3_COMPLETE")
    *before, last = words
    return [(item.type, item.value) for item in shell.get_completions(before, last)]


def values(*words: str) -> list[str]:
    return [value for kind, value in completed(*words) if kind == "plain"]


def test_commands_are_completed():
    assert values("ch") == ["chat", "checkpoint"]
    assert values("checkpoint", "m") == ["merge", "merge-lora"]
    assert "nobody" not in values("nobody", "")


def test_options_are_completed():
    assert values("chat", "--max-") == ["--max-seq-length", "--max-new-tokens"]
    assert values("convert", "--to", "mind") == ["mindspore", "mindspore-safetensors"]


@pytest.mark.parametrize("command", [["chat", "--model"], ["bench"], ["serve"], ["pull"]])
def test_models_are_completed_and_directories_where_no_name_fits(command: list[str]):
    assert "glm3-6b" in values(*command, "gl")
    assert completed(*command, "ti") == [("plain", "tiny")]
    assert completed(*command, "./mo") == [("dir", "./mo")]


@pytest.mark.parametrize("command", [["finetune"], ["plan"], ["generate", "--config"]])
def test_presets_are_completed_and_files(command: list[str]):
    assert values(*command, "lora") == ["lora_tiny"]
    assert completed(*command, "run.y") == [("file", "run.y")]


def test_parts_of_plugins_are_completed():
    assert values("chat", "--runtime", "mindspore-c") == ["mindspore-cpu"]
    assert values("chat", "--tool", "in") == ["interpreter"]


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--tools"],
        ["chat", "--history"],
        ["chat", "--json-schema"],
        ["tokenize", "--messages"],
        ["generate", "--input"],
        ["rank-table", "validate"],
    ],
)
def test_files_are_completed(command: list[str]):
    assert completed(*command, "x") == [("file", "x")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str):
    result = CliRunner().invoke(app, ["completion", shell], prog_name="glm3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_GLM3_COMPLETE={shell}_complete" in result.stdout
    assert "_glm3_completion" in result.stdout


def test_bash_completes_with_its_script(tmp_path: Path):
    program = tmp_path / "glm3"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m glm3sdk "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
        eval "$(glm3 completion bash)"
        COMP_WORDS=(glm3 checkpoint me) COMP_CWORD=2
        _glm3_completion glm3
        echo "${COMPREPLY[*]}"
        complete -p glm3
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "merge merge-lora",
        "complete -o nosort -F _glm3_completion glm3",
    ]
    assert done.stderr == ""
