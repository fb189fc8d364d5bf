"""Validators of the schema's fields: the type and the range, in words.

A validator raises `InvalidRunConfigError` with the field's name alone; the loader adds the
file, the line and the section.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs

from glm3sdk.errors import InvalidRunConfigError, Problem

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?GB")


def shown(value: object) -> str:
    """A value as an error message shows it: short, in YAML's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return _short.repr(str(value) if isinstance(value, str) else value)


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """The likeliest spelling as the end of a message, or nothing."""
    close = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _reject(field: attrs.Attribute[Any], message: str) -> None:
    raise InvalidRunConfigError([Problem("", 0, 0, field.name, message)])


def _rejecting(fault: Callable[[Any], str | None], *, optional: bool = False) -> Validator:
    """A validator of a function that says what is wrong with a value."""

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        if message := fault(value):
            _reject(field, message)

    return check


def integer(low: int, high: int | None = None, *, optional: bool = False) -> Validator:
    """Accept whole numbers from low to high; neither true nor 1.0."""

    def fault(value: object) -> str | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return f"must be an integer, not {shown(value)}"
        if value < low:
            return f"must be at least {low}, not {shown(value)}"
        if high is not None and value > high:
            return f"must be at most {high}, not {shown(value)}"
        return None

    return _rejecting(fault, optional=optional)


def number(
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> Validator:
    """Accept finite numbers within bounds; low and high belong to them, above and below do not."""
    parts = (("at least", low), ("above", above), ("at most", high), ("below", below))
    bounds = " and ".join(f"{words} {bound:g}" for words, bound in parts if bound is not None)

    def fault(value: object) -> str | None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"must be a number, not {shown(value)}"
        inside = (
            math.isfinite(value)
            and (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
            and (below is None or value < below)
        )
        return None if inside else f"must be {bounds}, not {shown(value)}"

    return _rejecting(fault, optional=optional)


def flag() -> Validator:
    """Accept true and false."""
    return _rejecting(
        lambda value: (
            None if isinstance(value, bool) else f"must be true or false, not {shown(value)}"
        )
    )


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be text, not {shown(value)}"
    if not value.strip():
        return "must not be empty"
    # Control characters, line separators and half surrogate pairs: no name has them, and not
    # every file name or YAML file can hold them.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        return f"has a character that no name has: {value!a:.60}"
    return None


def text(*, optional: bool = False) -> Validator:
    """Accept text that is not blank."""
    return _rejecting(_text_fault, optional=optional)


def memory(*, optional: bool = False) -> Validator:
    """Accept an amount such as "59GB"."""

    def fault(value: object) -> str | None:
        if isinstance(value, str) and _MEMORY.fullmatch(value) and float(value[:-2]) > 0:
            return None
        return f'must be an amount such as "59GB", not {shown(value)}'

    return _rejecting(fault, optional=optional)


def one_of(choices: Iterable[str], *, optional: bool = False) -> Validator:
    """Accept one of some words (the members of a StrEnum too)."""
    known = tuple(map(str, choices))
    member = choices if isinstance(choices, type) and issubclass(choices, StrEnum) else str

    def fault(value: object) -> str | None:
        if isinstance(value, member) and value in known:
            return None
        guess = did_you_mean(value, known) if isinstance(value, str) else ""
        return f"must be one of {', '.join(known)}, not {shown(value)}{guess}"

    return _rejecting(fault, optional=optional)


def texts(count: int | None = None) -> Validator:
    """Accept a list of different texts: count of them, or at least one."""
    wanted = "a list of names" if count is None else f"a list of {count} names"

    def fault(value: object) -> str | None:
        if not isinstance(value, tuple) or (len(value) != count if count else not value):
            return f"must be {wanted}, not {shown(value)}"
        for item in value:
            if message := _text_fault(item):
                return f"must be {wanted}; one of them {message}"
        if len(set(value)) < len(value):
            return f"must be {wanted}, each once"
        return None

    return _rejecting(fault)


def section(kind: type, *, optional: bool = False) -> Validator:
    """Accept a value of one class of the schema."""
    return _rejecting(
        lambda value: None if isinstance(value, kind) else f"must be a section, not {shown(value)}",
        optional=optional,
    )
