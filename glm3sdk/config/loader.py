"""Read, check and write run configurations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any

import attrs

from glm3sdk.config.checks import did_you_mean
from glm3sdk.config.contradictions import contradictions
from glm3sdk.config.document import (
    MAX_SIZE,
    Node,
    Place,
    read_mapping,
    read_override,
    read_yaml,
    write_yaml,
)
from glm3sdk.config.mindformers import is_mindformers, translate
from glm3sdk.config.schema import RunConfig
from glm3sdk.config.structure import structure, unstructure
from glm3sdk.errors import InvalidRunConfigError, Problem, unknown_name

logger = logging.getLogger(__name__)

_PRESETS = files("glm3sdk.config") / "presets"


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration: a YAML file (ours or MindFormers'), or a preset by its name.

    Relative paths in it stay relative to the current directory.

    Args:
        path: the file; where there is none of that name, a preset such as "finetune_2k".
        overrides: `key=value` texts such as "training.max_steps=10", applied in order.

    Raises:
        InvalidRunConfigError: the file cannot be read, or with every problem in it.
    """
    source = str(path)
    if source in preset_names() and not Path(source).exists():
        return load_preset(source, overrides=overrides)
    return _from_text(_read_file(Path(path)), source, overrides)


def load_preset(name: str, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration that ships with the package.

    Raises:
        UnknownNameError: no preset goes by that name.
        InvalidRunConfigError: an override is wrong.
    """
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    return _from_text(text, f"{name}.yaml", overrides)


def preset_names() -> tuple[str, ...]:
    """The names that `load_preset` knows."""
    names = (entry.name for entry in _PRESETS.iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".yaml")))


def parse_config(text: str, *, source: str) -> RunConfig:
    """Read a configuration from YAML text.

    Args:
        text: the YAML.
        source: what errors call it.

    Raises:
        InvalidRunConfigError: with every problem.
    """
    return _from_text(text, source, ())


def config_from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from nested Python values under the names of the YAML file.

    Raises:
        InvalidRunConfigError: with every problem.
    """
    return _from_tree(read_mapping(mapping), (), [])


def dump_config(config: RunConfig) -> str:
    """YAML with every key, which `parse_config` reads back to an equal value."""
    return write_yaml(unstructure(config))


def check_config(config: RunConfig) -> None:
    """Look for values that contradict each other in a configuration built in Python.

    Raises:
        InvalidRunConfigError: with every contradiction.
    """
    found = [Problem("", 0, 0, key, message) for key, message, _ in contradictions(config)]
    if found:
        raise InvalidRunConfigError(found)


def _from_text(text: str, source: str, overrides: Sequence[str]) -> RunConfig:
    problems: list[Problem] = []
    return _from_tree(read_yaml(text, source, problems), overrides, problems)


def _from_tree(tree: Node, overrides: Sequence[str], problems: list[Problem]) -> RunConfig:
    refused = False
    if is_mindformers(tree):
        translation = translate(tree)
        tree, problems = translation.tree, [*problems, *translation.problems]
        refused = bool(translation.problems)
        if translation.ignored:
            logger.warning(
                "keys of a MindFormers configuration that are not used here:\n%s",
                "\n".join(translation.ignored),
            )
    for override in overrides:
        try:
            tree = _overridden(tree, override)
        except InvalidRunConfigError as exc:
            problems += exc.problems
    config = structure(tree, problems, related=not refused)
    if problems:
        ordered = sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column))
        raise InvalidRunConfigError(dict.fromkeys(ordered))
    return config


def _overridden(tree: Node, override: str) -> Node:
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = tuple(key.split("."))
    place = Place("--set", key=key)
    if not equals or not all(parts):
        place = Place("--set", key=override)
        raise place.error("must be key=value, such as training.max_steps=10")
    return _with(tree, parts, read_override(text, place))


def _with(node: Node, parts: tuple[str, ...], value: Node, depth: int = 0) -> Node:
    """A copy of a tree with one value replaced; missing sections appear."""
    if depth == len(parts):
        return value
    place = Place("--set", key=".".join(parts[: depth + 1]))
    children = dict(node.value) if isinstance(node.value, dict) else {}
    if not isinstance(node.value, dict | NoneType):
        above = attrs.evolve(place, key=".".join(parts[:depth]))
        node = attrs.evolve(node, place=above)
    child = children.get(parts[depth], Node(None, place, place))
    children[parts[depth]] = _with(child, parts, value, depth + 1)
    return attrs.evolve(node, value=children)


def _read_file(path: Path) -> str:
    whole = Place(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise whole.error("is larger than 1 MiB: is it a run configuration?")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        guess = did_you_mean(str(path), preset_names())
        known = f"no such file or preset (presets: {', '.join(preset_names())}){guess}"
        raise whole.error(known) from None
    except UnicodeDecodeError as exc:
        before = data[: exc.start]
        line, column = before.count(b"\n") + 1, exc.start - before.rfind(b"\n")
        whole = attrs.evolve(whole, line=line, column=column)
        raise whole.error("not UTF-8: save it in that encoding") from exc
    except OSError as exc:
        raise whole.error(f"cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # a NUL in the name
        raise whole.error(f"cannot be read: {exc}") from exc
