"""What a shell completes where a command takes a name: models, presets, plugins' parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import click
from click.shell_completion import CompletionItem

from glm3sdk.domain.published_models import PUBLISHED_MODELS

if TYPE_CHECKING:
    _Items: TypeAlias = list[CompletionItem[str]]

VARIABLE = "_GLM3_COMPLETE"
"""The environment variable by which a shell asks click."""

_MODELS = ("tiny", *PUBLISHED_MODELS)


def _names_or(
    kind: str, names: Callable[[], Iterable[str]]
) -> Callable[[click.Context, click.Parameter, str], _Items]:
    """Complete names, and where none begins so, what the shell finds of a kind."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> _Items:
        found = [CompletionItem(name) for name in sorted(names()) if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type=kind)]

    return complete


def _presets() -> tuple[str, ...]:
    from glm3sdk.config.loader import preset_names

    return preset_names()


def _parts(kind: str) -> list[str]:
    from glm3sdk.bootstrap.plugin_list import list_plugins

    return [part.name for part in list_plugins().parts if part.kind == kind]


complete_model = _names_or("dir", lambda: _MODELS)
"""A name of a model, or a directory."""

complete_model_or_file = _names_or("file", lambda: _MODELS)
"""A name of a model, a file or a directory."""

complete_config = _names_or("file", _presets)
"""A preset of a run, or a file."""

complete_runtime = _names_or("plain", lambda: _parts("runtime"))
"""A runtime, plugins' included."""

complete_tool = _names_or("plain", lambda: _parts("tool"))
"""A tool that can be run, plugins' included."""
