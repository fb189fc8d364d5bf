"""Errors as the command line reports them: one line and an exit code."""

from __future__ import annotations

import errno
import re
from typing import IO, Any

import click

from glm3sdk.cli.interrupts import INTERRUPTED
from glm3sdk.errors import Glm3Error, UserError


def error_line(error: Glm3Error) -> str:
    """The one line that reports an error."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"glm3: error: {' '.join(line for line in lines if line)}"


_MARK = re.compile(r"^( *)\\b$", re.MULTILINE)
_SHOWN = 80


class Failure(click.ClickException):
    """An error of the SDK on its way out; exit code 1."""

    def __init__(self, error: Glm3Error) -> None:
        super().__init__(error_line(error))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(self.message, file=file, err=file is None)


class Mistake(Failure):
    """What a person can put right; exit code 2."""

    exit_code = 2


class ReportingGroup(click.Group):
    """Commands whose typed errors and Ctrl-C end in a line and an exit code."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        r"""Add a command; a line `\b` of its raw docstring is click's mark to keep lines."""
        if cmd.help is not None:
            cmd.help = _MARK.sub("\\1\b", cmd.help)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as exc:
            raise Mistake(exc) from exc
        except Glm3Error as exc:
            raise Failure(exc) from exc
        except OSError as exc:
            if exc.errno == errno.EPIPE:  # a reader that leaves; click ends the program quietly
                raise
            raise system_failure(exc) from exc
        except MemoryError as exc:
            words = str(exc) or "ask for less at once"
            raise Failure(Glm3Error(f"not enough memory: {words}")) from exc
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def system_failure(error: OSError) -> Failure:
    """What the system refused, and nobody expected: a full disk, a name that is too long."""
    words = error.strerror or str(error)
    if error.filename is None:
        return Failure(Glm3Error(words))
    name = str(error.filename)
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    mistake = error.errno in (errno.ENAMETOOLONG, errno.ENOENT, errno.EACCES, errno.ENOTDIR)
    kind = Mistake if mistake else Failure
    return kind(Glm3Error(f"cannot use {shown!r}: {words}"))
