"""The `pattern` of a JSON Schema, which searches, as one that matches the whole string."""

from __future__ import annotations

import re

_ANY = "(?s:.*)"
_FLAGS = re.compile(r"\(\?([is]+)\)")
# A part of what Python's classes match, so that every engine agrees.
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": " "}

_DAY = r"0[1-9]|1[0-9]|2[0-8]"
_DATE = (
    rf"[0-9]{{4}}-(?:(?:0[1-9]|1[0-2])-(?:{_DAY})|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_WORD = r"[a-z0-9]{1,32}"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_WORD}(?:[._+-]{_WORD}){{0,4}}@{_WORD}(?:\.{_WORD}){{0,3}}\.[a-z]{{2,8}}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""Formats that are enforced. To JSON Schema a format is a remark; others are passed over.

February ends at 28, so that each day is one of its year.
"""


def whole_match(pattern: str) -> str:
    """A pattern, in the engine's syntax, of the strings in which `pattern` is found.

    Raises:
        ValueError: an anchor that is neither at the beginning nor at the end.
    """
    flags = _FLAGS.match(pattern)
    body = pattern[flags.end() :] if flags else pattern
    options = [_whole(option) for option in _alternatives(body)]
    return f"(?{flags[1] if flags else ''}:{'|'.join(options)})"


def _whole(option: str) -> str:
    begins = option.startswith("^")
    # An even number of backslashes escapes nothing behind them.
    ends = re.search(r"(?<!\\)(?:\\\\)*\$\Z", option) is not None
    inner = _translated(option[begins : len(option) - ends])
    return f"{'' if begins else _ANY}(?:{inner}){'' if ends else _ANY}"


def _alternatives(pattern: str) -> list[str]:
    """The pattern cut at each `|` that stands in no group or class."""
    parts, start, depth, in_class, position = [], 0, 0, False, 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character == "|" and depth == 0:
            parts.append(pattern[start:position])
            start = position + 1
        else:
            depth += (character == "(") - (character == ")")
        position += 1
    return [*parts, pattern[start:]]


def _translated(pattern: str) -> str:
    text, in_class, negated, position = "", False, False, 0
    while position < len(pattern):
        character, following = pattern[position], pattern[position + 1 : position + 2]
        position += 1
        if character == "\\":
            position += 1
            if following in _CLASSES and not negated:
                inside = _CLASSES[following]
                text += inside if in_class else f"[{inside}]"
            else:
                text += character + following
            continue
        if in_class:
            in_class = character != "]"
            negated = negated and in_class
        elif character == "[":
            in_class, negated = True, following == "^"
        elif character in "^$":
            raise ValueError(f"{character!r} stands neither at the beginning nor at the end")
        text += {"/": r"\/", "\n": r"\n"}.get(character, character)
    return text
