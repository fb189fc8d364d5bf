"""The commands of `glm3` itself, registered as a plugin would."""

from __future__ import annotations

from functools import partial

import click

from glm3sdk.hookspecs import RegisterCommand, hookimpl


@hookimpl
def glm3_register_commands(register: RegisterCommand) -> None:
    """Register every command, so that a plugin's of the same name is noticed."""
    from glm3sdk.cli.app import app

    for name in app.commands:
        register(name, partial(_command, name))


def _command(name: str) -> click.Command:
    from glm3sdk.cli.app import app

    return app.commands[name]
