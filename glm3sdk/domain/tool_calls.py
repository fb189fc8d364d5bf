"""Tool calls as the model writes them: a fence around `tool_call(key='value')`.

Nothing is executed: a reader of its own accepts a call whose arguments are literals, and
every other text becomes a `MalformedToolCall`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from glm3sdk.domain.chat import MalformedToolCall, ToolCall
from glm3sdk.errors import InvalidMessageError

MAX_BODY_LENGTH = 64 * 1024
"""Characters of a call's body; a longer one is malformed."""

# Python's own reader stops at 200 brackets; no tool's arguments come near either limit.
_MAX_DEPTH = 100

_FENCE = re.compile(r"\s*```(?:(?:python3?|py|json)\b)?[ \t]*\r?\n?", re.IGNORECASE)
_SPACE = re.compile(r"(?:\s|\\\r?\n|#[^\n]*)*")
# Wider than an identifier, so that `user-id=` is seen whole.
_KEYWORD = re.compile(r"([^\s()\[\]{},:='\"#*]+)\s*=(?!=)")
_STRING = re.compile(
    r"(?P<prefix>[A-Za-z]{0,2})(?:"
    r"(?P<long>'''|\"\"\")(?P<long_text>(?:\\.|[^\\])*?)(?P=long)"
    r"|(?!'''|\"\"\")(?P<short>['\"])(?P<text>(?:\\.|(?!(?P=short))[^\\\n])*)(?P=short))",
    re.DOTALL,
)
_DIGITS = r"[0-9](?:_?[0-9])*"
_NUMBER = re.compile(
    r"(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+"
    rf"|(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?)(?![\w.])"
)
_WORD = re.compile(r"[^\W\d]\w*")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
# What follows a backslash in an escape that Python knows and does not warn about.
_ESCAPED = re.compile(
    r"\\(?P<known>\r?\n|[\\'\"abfnrtv]|[0-3]?[0-7]{1,2}(?![0-7])|[0-3][0-7]{2}"
    r"|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^{}\n]+\})?"
    r"|[\0\r\ud800-\udfff]"
)


class _UnreadableError(ValueError):
    """Why a text or a value is not a call with JSON arguments."""


def render_tool_call(arguments: Mapping[str, Any]) -> str:
    """Write a call the way the model does, for the content of an assistant message.

    Args:
        arguments: keyword arguments as JSON values.

    Raises:
        InvalidMessageError: an argument is not a JSON value.
    """
    try:
        written = (
            f"{key}={_literal(value, 1)}"
            if isinstance(key, str) and key.isidentifier()
            else f"**{_literal({key: value})}"
            for key, value in arguments.items()
        )
        return f"```python\ntool_call({', '.join(written)})\n```"
    except _UnreadableError as exc:
        raise InvalidMessageError(f"tool call arguments must be JSON values: {exc}") from exc


def parse_tool_call(
    name: str, body: str, *, raw: str | None = None
) -> ToolCall | MalformedToolCall:
    """Read what the model wrote under a tool's name. Never raises, never evaluates.

    Text after the closing fence is ignored and reported as a repair.

    Args:
        name: the tool's name, from the turn's first line.
        body: the rest of the turn.
        raw: the turn's whole text, kept in a `MalformedToolCall`.
    """
    reader = _Reader(without_fence(body) or body)
    try:
        if len(body) > MAX_BODY_LENGTH:
            raise _UnreadableError(f"{len(body)} characters (at most {MAX_BODY_LENGTH} are read)")
        arguments = reader.body(name)
        _literal(arguments)
    except (_UnreadableError, RecursionError, MemoryError) as exc:
        reason = str(exc) if isinstance(exc, _UnreadableError) else "nested too deeply"
        return MalformedToolCall(name, f"{name}\n{body}" if raw is None else raw, reason)
    return ToolCall(name, arguments, "; ".join(reader.repairs) or None)


def without_fence(body: str) -> str | None:
    """The text after the opening fence, or None where there is no fence."""
    fence = _FENCE.match(body)
    return body[fence.end() :] if fence else None


def _literal(value: object, depth: int = 0) -> str:
    """Write a JSON value as a Python literal; raise `_UnreadableError` for any other."""
    if depth > _MAX_DEPTH:
        raise _UnreadableError(f"nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError as exc:
            raise _UnreadableError(f"an integer of {value.bit_length()} bits") from exc
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _UnreadableError(f"{value!r} is not a finite number")
        return float.__repr__(value)
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _UnreadableError(f"{value!r:.60} holds half of a character")
        return str.__repr__(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item, depth + 1) for item in value)}]"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _UnreadableError(f"a key is a {type(key).__name__}, not a string")
        items = (f"{_literal(key)}: {_literal(item, depth + 1)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    raise _UnreadableError(f"a {type(value).__name__} is not a JSON value")


class _Reader:
    """Reads one call from the start of a text and collects what it had to mend."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.repairs: list[str] = []

    def body(self, name: str) -> dict[str, Any]:
        self._skip()
        if self.text.startswith("{", self.position):
            arguments = self._object(name)
        else:
            self._expect("tool_call")
            self._expect("(")
            arguments = self._arguments()
        self._skip()
        if self._take("```"):
            if self.text[self.position :].strip():
                self._mended("ignored the text after the closing fence")
        elif self.position < len(self.text):
            self._fail("text after the call")
        return arguments

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        while not self._take(")"):
            if self._take("**"):
                start = self.position
                items = self._value()
                if not isinstance(items, dict):
                    self.position = start
                    self._fail("only a dict can follow **")
            else:
                items = {self._keyword(): self._value()}
            for key in items:
                if key in arguments:
                    raise _UnreadableError(f"argument {key!r:.60} is given twice")
            arguments.update(items)
            if not self._take(","):
                self._expect(")")
                break
        return arguments

    def _keyword(self) -> str:
        self._skip()
        match = _KEYWORD.match(self.text, self.position)
        if match is None:
            self._fail("an argument without a name")
        name = match[1]
        if not name.isidentifier():
            if not name.replace("-", "_").isidentifier():
                self._fail("not the name of an argument")
            self._mended("read an argument's name with hyphens")
        self.position = match.end()
        return name

    def _object(self, name: str) -> dict[str, Any]:
        """Read `{"name": ..., "arguments": {...}}`, which other models write."""
        try:
            call, self.position = json.JSONDecoder().raw_decode(self.text, self.position)
        except ValueError:
            call = self._value()
        keys = sorted(call)
        if keys not in (["arguments", "name"], ["name", "parameters"]):
            raise _UnreadableError(f"a JSON object with {keys!r:.80}, not name and arguments")
        if call["name"] != name:
            raise _UnreadableError(f"the name line says {name!r}, the body {call['name']!r:.60}")
        arguments = call.get("arguments", call.get("parameters"))
        self._mended("read a JSON object instead of tool_call(...)")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as exc:
                raise _UnreadableError(f"arguments {arguments!r:.60} are not JSON") from exc
        if not isinstance(arguments, dict):
            raise _UnreadableError(f"arguments are {arguments!r:.60}, not an object")
        return arguments

    def _value(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise _UnreadableError(f"nested more than {_MAX_DEPTH} deep")
        self._skip()
        if _STRING.match(self.text, self.position):
            return self._strings()
        if self._take("["):
            return self._items("]", depth)[0]
        if self._take("("):
            items, comma = self._items(")", depth)
            return items[0] if len(items) == 1 and not comma else items
        if self._take("{"):
            return self._dict(depth)
        start = self.position
        sign = -1 if self._take("-") else 1
        if sign == 1:
            self._take("+")
        self._skip()
        if number := self._match(_NUMBER):
            try:
                value = sign * ast.literal_eval(number[0])
            except (ValueError, SyntaxError) as exc:
                raise _UnreadableError(f"not a number: {number[0]!r:.60}") from exc
            # Python refuses to print some integers, in an error's text too.
            _literal(value)
            return value
        self.position = start
        word = _WORD.match(self.text, start)
        if word is None or word[0] not in _WORDS:
            self._fail("not a literal")
        self.position = word.end()
        if word[0].islower():
            self._mended("read JSON's true, false or null")
        return _WORDS[word[0]]

    def _items(self, end: str, depth: int) -> tuple[list[Any], bool]:
        items: list[Any] = []
        comma = True
        while not self._take(end):
            if not comma:
                self._fail(f"',' or {end!r} is missing")
            items.append(self._value(depth + 1))
            comma = self._take(",")
        return items, comma

    def _dict(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        comma = True
        while not self._take("}"):
            if not comma:
                self._fail("',' or '}' is missing")
            start = self.position
            key = self._value(depth + 1)
            if not self._take(":"):
                self._fail("':' is missing (a set is no JSON value)")
            if not isinstance(key, str):
                self.position = start
                self._fail("a key that is no string")
            items[key] = self._value(depth + 1)
            comma = self._take(",")
        return items

    def _strings(self) -> str:
        """Adjacent strings are one, as in Python."""
        text = ""
        while match := _STRING.match(self.text, self.position):
            prefix = match["prefix"].lower()
            if prefix not in ("", "u", "r"):
                self._fail("not a plain string")
            inner = match["text"] if match["long"] is None else match["long_text"]
            if prefix == "r":
                text += inner
            else:
                quote = match["short"] or match["long"]
                text += _unescape(inner, quote)
            self.position = match.end()
            self._skip()
        # JSON writes a character beyond U+FFFF as two escapes.
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if joined != text:
            self._mended("joined JSON's surrogate pairs")
        return joined

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def _skip(self) -> None:
        self._match(_SPACE)

    def _take(self, token: str) -> bool:
        self._skip()
        found = self.text.startswith(token, self.position)
        self.position += len(token) * found
        return found

    def _expect(self, token: str) -> None:
        if not self._take(token):
            self._fail(f"{token!r} is missing")

    def _mended(self, repair: str) -> None:
        if repair not in self.repairs:
            self.repairs.append(repair)

    def _fail(self, reason: str) -> NoReturn:
        rest = self.text[self.position : self.position + 40]
        raise _UnreadableError(f"{reason}: {rest!r}" if rest else f"{reason} at the end")


def _unescape(inner: str, quote: str) -> str:
    def escaped(match: re.Match[str]) -> str:
        if match["known"]:
            return match[0]
        # An unknown escape stands for itself in Python, which warns about it; a path such as
        # C:\users is an error there.
        return "\\\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}"

    try:
        text: str = ast.literal_eval(quote + _ESCAPED.sub(escaped, inner) + quote)
    except (ValueError, SyntaxError) as exc:
        raise _UnreadableError(f"not a string: {inner!r:.60}") from exc
    return text
