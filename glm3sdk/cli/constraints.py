"""The options that say what a reply may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glm3sdk.cli.input import read_json
from glm3sdk.errors import InvalidConstraintError, UserError

if TYPE_CHECKING:
    from glm3sdk.domain.constraints import Constraint

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--json-schema",
        type=click.Path(),
        metavar="FILE",
        help="Answer with JSON that fits this schema.",
    ),
    click.option("--choice", metavar="A,B,C", help="Answer with one of these texts."),
    click.option("--regex", metavar="PATTERN", help="Answer with a text that matches this."),
    click.option(
        "--grammar", type=click.Path(), metavar="FILE", help="Answer as a Lark grammar says."
    ),
    click.option(
        "--tool-choice",
        metavar="CHOICE",
        help="auto, none, required, or the name of the tool to call.",
    ),
)


def constraint_options(command: _Command) -> _Command:
    """Add the options that `read_constraint` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_constraint(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the options of a command by the values of a `GenerationConfig`.

    Raises:
        UserError: a file cannot be read.
        InvalidConstraintError: what it holds is no constraint; the message names the file.
    """
    from glm3sdk.domain.constraints import Choice, Grammar, Regex

    readers: Mapping[str, Callable[[str], Constraint]] = {
        "json_schema": _json_schema,
        "choice": lambda text: Choice([part.strip() for part in text.split(",")]),
        "regex": Regex,
        "grammar": lambda path: Grammar(_read(path)),
    }
    given = {name: options.pop(name) for name in readers}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise click.UsageError(f"{names}: a reply can be held to one of them")
    if chosen:
        ((name, value),) = chosen.items()
        options["constraint"] = readers[name](value)
    return options


@contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Have the errors of a constraint name the file that it was read from; None is none."""
    try:
        yield
    except InvalidConstraintError as exc:
        if file is None or str(exc).startswith(f"{file}: "):
            raise
        raise type(exc)(f"{file}: {exc}") from exc


def _json_schema(path: str) -> Constraint:
    from glm3sdk.domain.constraints import JsonSchema

    with naming(path):
        return JsonSchema(read_json(path))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise UserError(f"cannot read {path!r}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: not UTF-8 (byte {exc.start}); save it so") from exc
