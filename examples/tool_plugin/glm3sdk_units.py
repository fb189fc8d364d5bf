"""A tool and a command for glm3sdk: lengths from one unit into another.

glm3 chat "how far is 3 miles in km?" --tool convert_length
glm3 convert-length 3 mile km
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from glm3sdk.hookspecs import RegisterCommand, RegisterTool, hookimpl

if TYPE_CHECKING:  # this module is imported whenever glm3sdk looks for plugins: keep it light
    import click

Unit = Literal["m", "km", "mile", "里"]

_METRES = {"m": 1.0, "km": 1000.0, "mile": 1609.344, "里": 500.0}


@hookimpl
def glm3_register_tools(register: RegisterTool) -> None:
    """Let glm3sdk know of the tool; the model is offered it only where a user names it."""
    register("convert_length", lambda: convert_length)


@hookimpl
def glm3_register_commands(register: RegisterCommand) -> None:
    """Let glm3sdk know of the command; it is made when it is used."""
    register("convert-length", _command)


def convert_length(value: float, unit: Unit, to: Unit) -> str:
    """Convert a length from one unit into another.

    Args:
        value: how many of `unit`.
        unit: the unit that the value has.
        to: the unit that is wanted.
    """
    for name in (unit, to):
        # The model may write anything: what is raised goes back to it as an observation.
        if name not in _METRES:
            raise ValueError(f"no unit {name!r}; there are {', '.join(_METRES)}")
    return f"{value * _METRES[unit] / _METRES[to]:g} {to}"


def _command() -> click.Command:
    import click

    @click.command("convert-length")
    @click.argument("value", type=float)
    @click.argument("unit", type=click.Choice(get_args(Unit)))
    @click.argument("to", type=click.Choice(get_args(Unit)))
    def command(value: float, unit: Unit, to: Unit) -> None:
        """Convert a length of VALUE UNIT into the unit TO."""
        click.echo(convert_length(value, unit, to))

    return command
