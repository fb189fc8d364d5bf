"""Finds plugins and what they registered; built-in parts register like any plugin."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import Distribution, distributions
from types import MappingProxyType
from typing import Any

import attrs
import pluggy

from glm3sdk._version import __version__
from glm3sdk.errors import Glm3Error, PluginError, unknown_name
from glm3sdk.hookspecs import PROJECT, Hooks

_log = logging.getLogger(__name__)


@attrs.frozen
class Owner:
    """Who registered something.

    Attributes:
        distribution: as `pip` knows it; a module's name where no distribution brought it.
        version: the distribution's; "" without one.
    """

    distribution: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


@attrs.frozen
class Registration:
    """What stands behind a name.

    Attributes:
        name: as users write it.
        factory: what was registered.
        owner: who did.
    """

    name: str
    factory: Any
    owner: Owner


@attrs.frozen
class BrokenPlugin:
    """An installed plugin that is left out.

    Attributes:
        entry_point: its name in the group "glm3sdk".
        owner: the distribution that brought it.
        reason: why it cannot be used.
    """

    entry_point: str
    owner: Owner
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.entry_point!r} of {self.owner} cannot be used: {self.reason}"


class Plugins(pluggy.PluginManager):
    """A plugin manager that knows whom its plugins are from.

    Attributes:
        owners: of every plugin, by its name in the manager.
        broken: installed plugins that are left out.
    """

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.owners: dict[str, Owner] = {}
        self.broken: tuple[BrokenPlugin, ...] = ()


def plugin_manager(builtins: Iterable[object], *, discover: bool = True) -> Plugins:
    """Build a plugin manager with the built-in plugins and the installed ones.

    An installed plugin that cannot be used is left out with a logged warning, so that it does
    not stop what has nothing to do with it; `missing` names it where a name is not found.

    Args:
        builtins: modules that implement hooks.
        discover: whether to load the entry points of group "glm3sdk" too.

    Raises:
        PluginError: a plugin of `builtins` implements an unknown hook.
    """
    manager = Plugins()
    manager.add_hookspecs(Hooks)
    for builtin in builtins:
        name = manager.register(builtin)
        ours = str(name).startswith(f"{PROJECT}.")
        manager.owners[str(name)] = Owner(PROJECT, __version__) if ours else Owner(str(name))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as exc:
        raise PluginError(f"a glm3sdk plugin cannot be used: {exc}; fix or uninstall it") from exc
    if discover:
        found = _installed()
        for plugin, name, owner in found.plugins:
            manager.register(plugin, name=name)
            manager.owners[name] = owner
        manager.broken = found.broken
    return manager


def registrations(manager: Plugins, hook: str, kind: str) -> dict[str, Registration]:
    """What plugins register through a hook that takes `register(name, factory)`.

    Args:
        manager: the plugins.
        hook: its name, such as "glm3_register_runtimes".
        kind: what a name stands for, such as "runtime".

    Raises:
        PluginError: two plugins register the same name, or one fails in its hook.
    """
    found: dict[str, Registration] = {}
    for plugin in manager.get_plugins():
        owner = manager.owners[str(manager.get_name(plugin))]

        def register(name: str, factory: Any, owner: Owner = owner) -> None:
            if name in found:
                raise PluginError(
                    f"{kind} {name!r} is registered twice, by {found[name].owner} and by "
                    f"{owner}; uninstall one of them"
                )
            found[name] = Registration(name, factory, owner)

        others = [other for other in manager.get_plugins() if other is not plugin]
        try:
            manager.subset_hook_caller(hook, others)(register=register)
        except Glm3Error:
            raise
        except Exception as exc:
            raise PluginError(
                f"{owner} fails in {hook}: {_told(exc)}; fix or uninstall it"
            ) from exc
    return found


def registered(manager: Plugins, hook: str, kind: str) -> dict[str, Any]:
    """Every factory by its name; arguments and errors as for `registrations`."""
    return {name: each.factory for name, each in registrations(manager, hook, kind).items()}


def missing(manager: Plugins, kind: str, name: str, known: Iterable[str]) -> Glm3Error:
    """Build the error for a name that nobody registered.

    Args:
        manager: the plugins.
        kind: what the name stands for, such as "runtime".
        name: what was asked for.
        known: every name that would have worked.

    Returns:
        An UnknownNameError; a PluginError where a plugin that cannot be used may have brought it.
    """
    error = unknown_name(kind, name, known)
    if not manager.broken:
        return error
    broken = "; ".join(map(str, manager.broken))
    return PluginError(f"{error}; {broken}: fix or uninstall it")


@attrs.frozen
class _Installed:
    plugins: tuple[tuple[object, str, Owner], ...]
    broken: tuple[BrokenPlugin, ...]


@cache
def _installed() -> _Installed:
    """The entry points of this process, imported once; a broken one is told of once."""
    plugins: dict[str, tuple[object, str, Owner]] = {}
    broken = []
    for name, (entry, owner) in _entry_points().items():
        try:
            plugin = entry.load()
            _check(plugin, name)
        except Exception as exc:  # a plugin may fail with anything while it is imported
            broken.append(BrokenPlugin(entry.name, owner, _told(exc)))
            _log.warning("%s; fix or uninstall it", broken[-1])
        else:
            plugins[name] = (plugin, name, owner)
    return _Installed(tuple(plugins.values()), tuple(broken))


def _entry_points() -> Mapping[str, tuple[Any, Owner]]:
    """Entry points of the group by a name of their own, which has the distribution in it."""
    found: dict[str, tuple[Any, Owner]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        normal = re.sub(r"[-_.]+", "-", _name(distribution)).lower()
        if normal in seen:
            continue  # an older one further back on sys.path, which Python does not import
        seen.add(normal)
        for entry in distribution.entry_points:
            if entry.group == PROJECT:
                owner = Owner(_name(distribution), distribution.version)
                found[f"{normal}:{entry.name}"] = (entry, owner)
    return MappingProxyType(found)


def _name(distribution: Distribution) -> str:
    # A broken installation may have none.
    return str(distribution.metadata["Name"] or "a distribution without a name")


def _check(plugin: object, name: str) -> None:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(plugin, name=name)
    manager.check_pending()


def _told(exc: Exception) -> str:
    # The first line: pluggy's message goes on, and one line is what a user is shown.
    text = next(iter(str(exc).strip().splitlines()), "")
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
