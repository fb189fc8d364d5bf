"""Errors as the command line reports them: one line and an exit code."""

from __future__ import annotations

from typing import IO, Any

import click

from glm3sdk.cli.interrupts import INTERRUPTED
from glm3sdk.errors import Glm3Error, UserError


def error_line(error: Glm3Error) -> str:
    """The one line that reports an error."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"glm3: error: {' '.join(line for line in lines if line)}"


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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as exc:
            raise Mistake(exc) from exc
        except Glm3Error as exc:
            raise Failure(exc) from exc
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
