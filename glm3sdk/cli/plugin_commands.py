"""Commands that plugins add to `glm3`; plugins are looked for when no other has the name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glm3sdk.cli.failures import ReportingGroup
from glm3sdk.errors import Glm3Error, PluginError

if TYPE_CHECKING:  # `glm3 --help` imports no plugin and nothing that finds them
    from glm3sdk.plugins import Registration


class ExtensibleGroup(ReportingGroup):
    """Commands of our own, and behind them those of plugins."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command; a plugin's is not in the list of commands.

        Raises:
            UnknownNameError: nobody has it.
            PluginError: a plugin that may have it cannot be used.
        """
        own = super().get_command(ctx, cmd_name)
        # While a shell completes, or an option is misspelt, nothing is to be raised.
        if own is not None or ctx.resilient_parsing or cmd_name.startswith("-"):
            return own
        return plugin_command(cmd_name)


def plugin_command(name: str) -> click.Command:
    """Make the command that a plugin registered under a name.

    Raises:
        UnknownNameError: no plugin, and not `glm3` itself, has it.
        PluginError: two register one name, or one that may have it cannot be used.
    """
    from glm3sdk.cli import own_commands
    from glm3sdk.plugins import missing, plugin_manager, registrations

    manager = plugin_manager([own_commands])
    found = registrations(manager, "glm3_register_commands", "command")
    if name not in found:
        raise missing(manager, "command", name, found)
    return _make(found[name])


def _make(found: Registration) -> click.Command:
    try:
        command = found.factory()
    except Glm3Error:
        raise
    except Exception as exc:  # a plugin may fail with anything
        raise PluginError(
            f"command {found.name!r} of {found.owner} cannot be made: {exc!r}; fix or uninstall it"
        ) from exc
    if not isinstance(command, click.Command):
        raise PluginError(
            f"command {found.name!r} of {found.owner} is {command!r:.80}, no click command; fix or "
            "uninstall it"
        )
    return command
