"""Shell lines of the documentation: `glm3` runs in this process, so that MindSpore starts once."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
from click.testing import CliRunner
from documentation.pages import REPOSITORY, Block

from glm3sdk.cli.app import app

_COMMENT = re.compile(r"(^|\s+)#\s.*$")
_ASSIGNMENT = re.compile(r"^[A-Z][A-Z0-9_]*=")
_OPERATORS = re.compile(r"[|&;<>`]|\$\(")
_SHOWN = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@attrs.frozen
class Line:
    """A command, and the output that the page shows for it (None: it shows none)."""

    command: str
    shown: str | None = None


def lines_of(block: Block) -> Iterator[Line]:
    """The commands of a block; in a `console` block they follow `$` and their output them."""
    code = block.code.replace("\\\n", " ")
    if block.language == "console":
        for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Line(_COMMENT.sub("", command), shown or None)
        return
    for line in code.splitlines():
        if command := _COMMENT.sub("", line).strip():
            yield Line(command)


def run(line: Line, folder: Path) -> None:
    """Run a command in a folder and compare what it prints with what the page shows.

    Args:
        line: a command; `glm3` where the shell has nothing to do, else anything for bash.
        folder: the current directory, which is this process's too.
    """
    words = shlex.split(line.command)
    if words[0] == "glm3" and not _OPERATORS.search(line.command):
        # Paths are given as they stand: nothing of a page uses the shell's patterns.
        done = CliRunner().invoke(app, words[1:], prog_name="glm3")
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        code, output, said = done.exit_code, done.output, done.stderr
    else:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
            "TINY": str(REPOSITORY / "glm3sdk" / "assets" / "tiny"),
            "REPOSITORY": str(REPOSITORY),
        }
        finished = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line.command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        code, output, said = finished.returncode, finished.stdout, finished.stderr
    expected = 2 if line.shown and line.shown.startswith("glm3: error: ") else 0
    assert code == expected, f"{line.command}: exit code {code}\n{output}\n{said}"
    if line.shown is not None:
        same = doctest.OutputChecker().check_output(line.shown, output, _SHOWN)
        assert same, f"{line.command} printed\n{output}\nbut the page shows\n{line.shown}"


def check(command: str) -> None:
    """Hold a command that cannot run to what is known: commands, options, targets, extras."""
    words = shlex.split(command)
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words[:1] == ["glm3"]:
        check_options(words[1:])
    if words[:1] == ["make"]:
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (REPOSITORY / "Makefile").read_text("utf-8")
        for target in targets:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make has no {target}"
    for extras in re.findall(r"glm3sdk\[([\w,]+)\]", command):
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
        unknown = {*extras.split(",")} - {*project["optional-dependencies"]}
        assert not unknown, f"glm3sdk has no extras {unknown}"


def check_options(words: list[str]) -> None:
    """Parse the arguments of `glm3` as it would, and run nothing.

    Raises:
        click.UsageError: a command, option or value that there is not.
    """
    words = [word for word in words if not re.match(r"^\d?[<>]", word)]
    command: click.Command = app
    context = app.make_context("glm3", words[:1])
    rest = words
    while isinstance(command, click.Group) and rest and rest[0] not in ("--help", "--version"):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, f"glm3 has no {name}"
        command = found
        context = command.make_context(name, [*rest], parent=context)
    if "--" in rest and (inner := rest[rest.index("--") + 1 :])[:1] == ["glm3"]:
        check_options(inner[1:])
