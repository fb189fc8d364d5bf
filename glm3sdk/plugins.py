"""Finds plugins and what they registered; built-in parts register like any plugin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from glm3sdk.errors import PluginError
from glm3sdk.hookspecs import PROJECT, Hooks


def plugin_manager(builtins: Iterable[object], *, discover: bool = True) -> pluggy.PluginManager:
    """Build a plugin manager with the built-in plugins and the installed ones.

    Args:
        builtins: modules that implement hooks.
        discover: whether to load the entry points of group "glm3sdk" too.

    Raises:
        PluginError: a plugin cannot be imported, or implements an unknown hook.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    for builtin in builtins:
        manager.register(builtin)
    try:
        if discover:
            manager.load_setuptools_entrypoints(PROJECT)
        manager.check_pending()
    except Exception as exc:
        # A plugin may fail with anything while it is imported.
        raise PluginError(f"a glm3sdk plugin cannot be used: {exc}; fix or uninstall it") from exc
    return manager


def registered(manager: pluggy.PluginManager, hook: str, kind: str) -> dict[str, Any]:
    """What plugins register through a hook that takes `register(name, factory)`.

    Args:
        manager: the plugins.
        hook: its name, such as "glm3_register_runtimes".
        kind: what a name stands for, such as "runtime".

    Returns:
        Every factory by its name.

    Raises:
        PluginError: two plugins register the same name.
    """
    factories: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for plugin in manager.get_plugins():
        owner = _distribution(manager, plugin)

        def register(name: str, factory: Any, owner: str = owner) -> None:
            if name in factories:
                raise PluginError(
                    f"{kind} {name!r} is registered twice, by {owners[name]} and by {owner}; "
                    "uninstall one of them"
                )
            factories[name] = factory
            owners[name] = owner

        others = [other for other in manager.get_plugins() if other is not plugin]
        manager.subset_hook_caller(hook, others)(register=register)
    return factories


def _distribution(manager: pluggy.PluginManager, plugin: object) -> str:
    for found, distribution in manager.list_plugin_distinfo():
        if found is plugin:
            return str(distribution.project_name)
    return str(manager.get_name(plugin) or plugin)
