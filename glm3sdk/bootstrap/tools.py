"""From the names of tools to tools that `Glm3Service.run_tools` calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from glm3sdk.domain.tool_functions import Tool, as_tool
from glm3sdk.errors import Glm3Error, PluginError
from glm3sdk.hookspecs import RegisterTool, hookimpl
from glm3sdk.plugins import missing, plugin_manager, registrations


@hookimpl
def glm3_register_tools(register: RegisterTool) -> None:
    """Register the tools that ship with the SDK, as any plugin would; nobody has to use them."""
    register("interpreter", _interpreter)


def load_tools(names: Iterable[str]) -> list[Tool]:
    """Make the tools that plugins registered under these names.

        service.run_tools([Message.user("2 ** 100?")], load_tools(["interpreter"]))

    Args:
        names: such as "interpreter", which runs the model's code cells in a process of their
            own (docs/code-interpreter.md); `glm3 plugins` lists them.

    Returns:
        The tools in that order, for `Glm3Service.run_tools`.

    Raises:
        UnknownNameError: no tool goes by a name.
        PluginError: two plugins register one name, or one that may have it cannot be used.
        InvalidToolError: a plugin's tool cannot be described to a model.
    """
    manager = plugin_manager([sys.modules[__name__]])
    found = registrations(manager, "glm3_register_tools", "tool")
    tools = []
    for name in names:
        if name not in found:
            raise missing(manager, "tool", name, found)
        factory: Callable[[], Tool | Callable[..., Any]] = found[name].factory
        try:
            tools.append(as_tool(factory()))
        except Glm3Error:
            raise
        except Exception as exc:  # a plugin may fail with anything
            raise PluginError(
                f"tool {name!r} of {found[name].owner} cannot be made: {exc!r}; fix or uninstall it"
            ) from exc
    return tools


def _interpreter() -> Tool:
    from glm3sdk.adapters.interpreter.process import interpreter_tool

    return interpreter_tool()
