"""From a tree to a `RunConfig`, with every problem found on the way."""

from __future__ import annotations

import difflib
from types import NoneType
from typing import Any, get_args, get_origin

import attrs
import cattrs

from glm3sdk.config.checks import did_you_mean, shown
from glm3sdk.config.contradictions import contradictions
from glm3sdk.config.document import Node, Place
from glm3sdk.config.schema import DataFormat, RunConfig, RunMode, ScheduleKind
from glm3sdk.errors import InvalidRunConfigError, Problem


def _is_tuple(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


def _converter() -> cattrs.Converter:
    """Convert without judging: what does not fit passes unchanged, for the validators to see."""
    converter = cattrs.Converter()
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, lambda value, _: value)
    converter.register_structure_hook(
        float,
        lambda value, _: (
            float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        ),
    )
    for words in (RunMode, DataFormat, ScheduleKind):
        converter.register_structure_hook(
            words,
            lambda value, kind: (
                kind(value) if isinstance(value, str) and value in set(kind) else value
            ),
        )
    converter.register_structure_hook_func(
        _is_tuple,
        lambda value, _: tuple(value) if isinstance(value, list) else value,
    )
    return converter


_CONVERTER = _converter()


def structure(tree: Node, problems: list[Problem], *, related: bool = True) -> RunConfig:
    """The configuration of a tree; keys in error have their default.

    Args:
        tree: what was written.
        problems: those found so far; gains every other one.
        related: look for contradictions too.
    """
    reader = _SectionReader(problems)
    config: RunConfig = reader.section(tree, RunConfig, "")
    for key, message, others in contradictions(config) if related else ():
        # A key with a problem of its own has a stand-in here: no second complaint about it.
        if not any(_overlap(one, other) for one in (key, *others) for other in reader.broken):
            problems.append(_place_of(tree, key).problem(message))
    return config


def unstructure(config: RunConfig) -> object:
    """The configuration as plain values, for YAML."""
    plain: dict[str, Any] = _CONVERTER.unstructure(config)
    return _plain(plain)


class _SectionReader:
    """Builds sections; `broken` gains the keys of the schema that have a problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.broken: set[str] = set()

    def section(self, node: Node, kind: type[Any], path: str) -> Any:
        attrs.resolve_types(kind)
        fields = {field.name: field for field in attrs.fields(kind)}
        entries: dict[str, Node] = node.value if isinstance(node.value, dict) else {}
        # A section whose every line is commented out reads as null.
        if not isinstance(node.value, dict | NoneType):
            self._report(path, node.place, f"must be a section, not {shown(node.value)}")
        for name, child in entries.items():
            if name not in fields:
                guess = _other_spelling(name, fields) or f" (known: {', '.join(fields)})"
                self.problems.append(child.key_place.problem(f"unknown key{guess}"))
        values = {}
        for name, field in fields.items():
            key = f"{path}.{name}" if path else name
            if name in entries:
                value = self._value(entries[name], field, key)
                if key not in self.broken or _section_kind(field) is not None:
                    values[name] = value
            if name not in values and field.default is attrs.NOTHING:
                values[name] = "missing"
                if name not in entries:
                    shown_key = f"{node.place.key}.{name}" if node.place.key else name
                    place = attrs.evolve(node.key_place, key=shown_key)
                    self._report(key, place, "is required")
        return kind(**values)

    def _value(self, node: Node, field: attrs.Attribute[Any], key: str) -> Any:
        section = _section_kind(field)
        if section is not None and not (node.value is None and field.default is None):
            return self.section(node, section, key)
        kind: Any = field.type
        value = _CONVERTER.structure(node.plain(), kind)
        try:
            if field.validator is not None:
                field.validator(None, field, value)
        except InvalidRunConfigError as exc:
            for problem in exc.problems:
                self._report(key, node.place, problem.message)
        return value

    def _report(self, key: str, place: Place, message: str) -> None:
        self.broken.add(key)
        self.problems.append(place.problem(message))


def _section_kind(field: attrs.Attribute[Any]) -> type[Any] | None:
    kinds = (field.type, *get_args(field.type))
    return next((kind for kind in kinds if isinstance(kind, type) and attrs.has(kind)), None)


def _other_spelling(name: str, fields: dict[str, attrs.Attribute[Any]]) -> str:
    """A likely key of this section, or the same key of another one."""
    if guess := did_you_mean(name, fields):
        return guess
    attrs.resolve_types(RunConfig)
    elsewhere = {
        f"{section.name}.{field.name}": field.name
        for section in attrs.fields(RunConfig)
        if (kind := _section_kind(section)) is not None
        for field in attrs.fields(kind)
    }
    close = difflib.get_close_matches(name, set(elsewhere.values()), n=1)
    keys = [key for key, last in elsewhere.items() if close and last == close[0]]
    return f"; did you mean {keys[0]!r}?" if keys else ""


def _place_of(tree: Node, key: str) -> Place:
    """Where a key was written, or the section that lacks it."""
    node = tree
    for part in key.split("."):
        if not isinstance(node.value, dict) or part not in node.value:
            return attrs.evolve(node.key_place, key=key)
        node = node.value[part]
    return attrs.evolve(node.place, key=node.place.key or key)


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _plain(value: Any) -> Any:
    """The value in types that YAML has: lists for tuples, text for enum members."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
