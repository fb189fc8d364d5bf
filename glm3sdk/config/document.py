"""YAML text as a tree in which every value knows where it was written.

Scalars follow YAML 1.2's core schema: `1e-4` is a number and `no` is text, both unlike
PyYAML's own reading of YAML 1.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import attrs
import yaml

from glm3sdk.config.checks import shown
from glm3sdk.errors import InvalidRunConfigError, Problem

MAX_SIZE = 1 << 20
# A configuration has a few hundred values. Aliases of aliases multiply, so they count as often
# as they are used.
MAX_VALUES = 20_000
MAX_DEPTH = 32

_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Longer digit strings are text: Python refuses to convert them without a limit lifted.
    ("int", r"[-+]?[0-9]{1,64}|0x[0-9a-fA-F]{1,64}|0o[0-7]{1,64}", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]{1,64}|[0-9]{1,64}(\.[0-9]{0,64})?)([eE][-+]?[0-9]{1,9})?",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
_TAG = "tag:yaml.org,2002:"


@attrs.frozen
class Place:
    """Where a value was written; the fields are those of `glm3sdk.errors.Problem`."""

    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""

    def problem(self, message: str) -> Problem:
        """What is wrong here."""
        return Problem(self.file, self.line, self.column, self.key, message)

    def error(self, message: str) -> InvalidRunConfigError:
        """The error of this one problem."""
        return InvalidRunConfigError([self.problem(message)])


@attrs.frozen(eq=False)
class Node:
    """A value: a scalar, a list of nodes, or a section (a dict of nodes).

    Attributes:
        value: what was written.
        place: where it was written.
        key_place: where its key was written.
    """

    value: Any
    place: Place
    key_place: Place

    def plain(self) -> object:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with bounds, stopped before it builds anything."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's name, filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_DEPTH} levels or {MAX_VALUES} values",
                problem_mark=self.get_mark(),
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what either reading of YAML would not read as text."""


for _name, _pattern, _first in _SCALARS:
    _regexp = re.compile(rf"(?:{_pattern})\Z")
    # The empty text stands under "" in PyYAML's table, which looks scalars up by first letter.
    _letters = [letter if letter != "\0" else "" for letter in _first]
    _Loader.add_implicit_resolver(_TAG + _name, _regexp, _letters)
    _Dumper.add_implicit_resolver(_TAG + _name, _regexp, _letters)


def read_yaml(text: str, source: str, problems: list[Problem]) -> Node:
    """The tree of a YAML document; an empty one is an empty section.

    Args:
        text: the document.
        source: what to call the file in errors.
        problems: gains what is wrong with single keys, such as one that is given twice.

    Raises:
        InvalidRunConfigError: there is no tree: not YAML, too large, or not a section.
    """
    whole, start = Place(source), Place(source, 1, 1)
    if len(text) > MAX_SIZE:
        raise whole.error("is larger than 1 MiB: is it a run configuration?")
    root = _compose(text, whole)
    if root is None:
        return Node({}, start, start)
    reader = _TreeReader(source)
    tree = reader.node(root, "", start)
    if not isinstance(tree.value, dict):
        raise tree.place.error("must be lines of `key: value`")
    problems += reader.problems
    return tree


def read_override(text: str, place: Place) -> Node:
    """The value of a `key=value` override: a scalar, or a list or section in brackets.

    Raises:
        InvalidRunConfigError: a quoted or bracketed value is not YAML.
    """
    stripped = text.strip()
    # Anything else is one plain scalar, so that a path may hold `: `, `#` or `@`.
    root: yaml.Node | None = None
    if stripped[:1] in ("'", '"', "[", "{"):
        root = _compose(stripped, place)
    root = root or yaml.ScalarNode(_plain_tag(stripped), stripped)
    reader = _TreeReader(place.file, fixed=place)
    node = reader.node(root, place.key, place)
    if reader.problems:
        raise InvalidRunConfigError(reader.problems)
    return node


def read_mapping(value: object, key: str = "", *, depth: int = 0) -> Node:
    """The tree of Python values; paths and enum members count as text.

    Raises:
        InvalidRunConfigError: a key is not text, or the values nest without end.
    """
    place = Place(key=key)
    if depth > MAX_DEPTH:
        raise place.error(f"is nested in more than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        if strange := [name for name in value if not isinstance(name, str)]:
            raise place.error(f"keys must be text, not {shown(strange[0])}")
        children = {
            str(name): read_mapping(child, _join(key, name), depth=depth + 1)
            for name, child in value.items()
        }
        return Node(children, place, place)
    if isinstance(value, list | tuple):
        items = [
            read_mapping(item, f"{key}[{index}]", depth=depth + 1)
            for index, item in enumerate(value)
        ]
        return Node(items, place, place)
    if isinstance(value, str):
        return Node(str(value), place, place)
    if isinstance(value, os.PathLike):
        return Node(os.fspath(value), place, place)
    return Node(value, place, place)


def write_yaml(value: object) -> str:
    """YAML of plain values, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain_tag(text: str) -> str:
    """The tag of an unquoted scalar."""
    resolvers = _Loader.yaml_implicit_resolvers.get(text[:1], [])
    return next((tag for tag, regexp in resolvers if regexp.match(text)), f"{_TAG}str")


def _compose(text: str, whole: Place) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        what = ", ".join(part for part in (exc.context, exc.problem) if part)
        mark = exc.problem_mark or exc.context_mark
        if mark is not None and whole.file != "--set":
            whole = attrs.evolve(whole, line=mark.line + 1, column=mark.column + 1)
        raise whole.error(f"not YAML: {what}") from exc
    except yaml.reader.ReaderError as exc:
        before = text[: exc.position]
        if whole.file != "--set":
            column = len(before) - before.rfind("\n")
            whole = attrs.evolve(whole, line=before.count("\n") + 1, column=column)
        raise whole.error(f"not YAML: the character U+{exc.character:04X} is not allowed") from exc
    except (ValueError, OverflowError) as exc:  # PyYAML on "\UFFFFFFFF"
        raise whole.error(f"not YAML: {exc}") from exc


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class _TreeReader:
    """Turns PyYAML's nodes into ours, collecting problems on the way."""

    def __init__(self, source: str, *, fixed: Place | None = None) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._fixed = fixed
        self._values = 0

    def node(self, source: yaml.Node, key: str, key_place: Place, depth: int = 0) -> Node:
        place = self._place(source, key)
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            # Stops at once: going on is what an alias bomb wants.
            raise attrs.evolve(place, key="").error(
                f"more than {MAX_DEPTH} levels or {MAX_VALUES} values, aliases counted as often "
                "as they are used"
            )
        value: Any
        if isinstance(source, yaml.MappingNode):
            value = self._section(source, key, depth)
        elif isinstance(source, yaml.SequenceNode):
            value = [
                self.node(item, f"{key}[{index}]", self._place(item, key), depth + 1)
                for index, item in enumerate(source.value)
            ]
        else:
            value = self._scalar(source, place)
        known = ("map", "seq", "str", "merge", "null", "bool", "int", "float")
        if source.tag.removeprefix(_TAG) not in known:
            self.problems.append(place.problem(f"the tag {shown(source.tag)} is not supported"))
        return Node(value, place, key_place)

    def _section(self, source: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        seen: set[str] = set()
        for name_node, value_node in source.value:
            if not isinstance(name_node, yaml.ScalarNode):
                place = self._place(name_node, key)
                self.problems.append(place.problem("keys must be text"))
                continue
            name = name_node.value
            place = self._place(name_node, _join(key, name))
            if name in seen:
                self.problems.append(place.problem("is given twice"))
                continue
            seen.add(name)
            child = self.node(value_node, place.key, place, depth + 1)
            if name_node.tag != _TAG + "merge":
                own[name] = child
                continue
            for part in child.value if isinstance(child.value, list) else [child]:
                if isinstance(part.value, dict):
                    # Of several merged sections the first wins, and all lose to own keys.
                    for merged_name, merged_child in part.value.items():
                        merged.setdefault(merged_name, merged_child)
                else:
                    self.problems.append(
                        part.place.problem("`<<` takes a section or a list of them")
                    )
        return {
            name: _renamed(child, _join(key, name))
            for name, child in merged.items()
            if name not in own
        } | own

    def _scalar(self, source: yaml.Node, place: Place) -> object:
        tag, text = source.tag.removeprefix(_TAG), str(source.value)
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                case "float":
                    return float(text)
        except (ValueError, KeyError):
            self.problems.append(place.problem(f"{shown(text)} is no {tag}"))
        return text

    def _place(self, source: yaml.Node, key: str) -> Place:
        if self._fixed is not None:
            return attrs.evolve(self._fixed, key=key)
        mark = source.start_mark
        return Place(self._source, mark.line + 1, mark.column + 1, key)


def _renamed(node: Node, key: str) -> Node:
    """A merged node under the key that it was merged into, its places kept."""
    value: Any = node.value
    if isinstance(value, dict):
        value = {name: _renamed(child, _join(key, name)) for name, child in value.items()}
    return Node(value, attrs.evolve(node.place, key=key), attrs.evolve(node.key_place, key=key))
