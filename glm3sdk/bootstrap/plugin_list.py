"""What is registered for every hook, and by whom."""

from __future__ import annotations

import attrs

from glm3sdk.bootstrap import metric_sinks, runtimes, storage, tokenizers, tools, topology
from glm3sdk.errors import PluginError
from glm3sdk.plugins import BrokenPlugin, Owner, plugin_manager, registrations

HOOKS = {
    "runtime": "glm3_register_runtimes",
    "tokenizer": "glm3_register_tokenizers",
    "blob store": "glm3_register_blob_stores",
    "checkpoint store": "glm3_register_checkpoint_stores",
    "topology": "glm3_register_topologies",
    "metric sink": "glm3_register_metric_sinks",
    "tool": "glm3_register_tools",
    "command": "glm3_register_commands",
}
"""Each kind of part with its hook."""

_BUILTINS = (metric_sinks, runtimes, storage, tokenizers, tools, topology)


@attrs.frozen
class Part:
    """Something that is registered.

    Attributes:
        kind: such as "runtime".
        name: as users write it.
        owner: who registered it.
    """

    kind: str
    name: str
    owner: Owner


@attrs.frozen
class PluginList:
    """Everything that is registered.

    Attributes:
        parts: in the order of `HOOKS`, then by name.
        problems: one line for each name clash or failing hook; nothing of that kind is listed.
        broken: plugins that are left out.
    """

    parts: tuple[Part, ...]
    problems: tuple[str, ...]
    broken: tuple[BrokenPlugin, ...]

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Who registered anything, each once."""
        return tuple(dict.fromkeys(part.owner for part in self.parts))


def list_plugins(*more: object) -> PluginList:
    """List what built-in parts and installed plugins register.

    Args:
        more: further built-in plugins, such as the module of the commands of `glm3`.
    """
    manager = plugin_manager([*_BUILTINS, *more])
    parts: list[Part] = []
    problems = []
    for kind, hook in HOOKS.items():
        try:
            found = registrations(manager, hook, kind)
        except PluginError as exc:
            problems.append(str(exc))
        else:
            parts += [Part(kind, name, found[name].owner) for name in sorted(found)]
    return PluginList(tuple(parts), tuple(problems), manager.broken)
