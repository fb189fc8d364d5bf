"""Reads what a person types in a conversation, or what a pipe brings, a message at a time."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache

import click

BLOCK = '"""'
"""A line of this opens a message of several lines, and another one ends it."""

_MORE = "... "


def ask(prompt: str) -> str:
    """Read a line from the terminal, with line editing where Python has it.

    A block that is pasted there is one line with newlines in it, where readline is GNU's.
    """
    _edit_lines()
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        click.echo()
        raise


def next_line(_prompt: str) -> str:
    """Read a line of standard input that nobody types; no prompt is shown."""
    line = "" if sys.stdin is None else sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def read_message(ask: Callable[[str], str], prompt: str) -> str:
    r"""Read a message: a line, lines that end in `\`, or those between two lines of `\"\"\"`.

    Raises:
        EOFError: the input ended before the message began.
    """
    line = ask(prompt)
    block = line.strip() == BLOCK
    lines = [] if block else [line]
    # Ctrl-D ends a message that has begun; the next one meets the end of input again.
    with contextlib.suppress(EOFError):
        if block:
            while (line := ask(_MORE)).strip() != BLOCK:
                lines.append(line)
        else:
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1].removesuffix("\\")
                lines.append(ask(_MORE))
    return "\n".join(lines)


@cache
def _edit_lines() -> None:
    try:
        import readline
    except ImportError:
        return
    from glm3sdk.cli.slash_commands import COMMANDS

    found: list[str] = []

    def complete(_word: str, number: int) -> str | None:
        nonlocal found
        if number == 0:
            found = completions(readline.get_line_buffer()[: readline.get_endidx()], COMMANDS)
        return found[number] if number < len(found) else None

    # Nothing of the line but its blanks parts words: commands begin with a slash.
    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    editline = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")


def completions(line: str, commands: Iterable[str]) -> list[str]:
    """What may stand in place of the last word of a line; nothing unless it is a command."""
    if not line.startswith("/"):
        return []
    command, space, rest = line.partition(" ")
    if not space:
        return [f"{name} " for name in sorted(commands) if name.startswith(command)]
    if command not in ("/save", "/load", "/tools") or " " in rest:
        return []
    paths = glob.glob(f"{glob.escape(os.path.expanduser(rest))}*")
    return [f"{path}/" if os.path.isdir(path) else path for path in sorted(paths)]
