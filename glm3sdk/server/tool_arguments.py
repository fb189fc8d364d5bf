"""A tool call's arguments as JSON, told while the model still writes them in Python's form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from glm3sdk.domain.chat import ToolCall
from glm3sdk.domain.tool_calls import MAX_BODY_LENGTH, parse_tool_call

_OPENING = re.compile(r"\s*(?:```(?:python3?|py)?[ \t]*\r?\n)?\s*tool_call\s*\(")
_LONGEST_OPENING = 64
_QUOTES = ("'", '"')


def as_json(arguments: Mapping[str, Any]) -> str:
    """Arguments as OpenAI's clients read them."""
    return json.dumps(arguments, ensure_ascii=False)


class ArgumentStream:
    """Turns the growing text of a call into growing JSON, one whole argument at a time.

    What was told is the beginning of `as_json` of the arguments that the parser will find.
    Where that is not sure (another form, a comment, a repair), it waits for the end.
    """

    def __init__(self) -> None:
        self.told = ""
        self._text = ""
        self._position: int | None = None
        self._argument_start = 0
        self._depth = 0
        self._quote = ""
        self._names: set[str] = set()
        self._sure = True

    def feed(self, raw: str) -> str:
        """Take more of the call's body; returns the JSON that it completes, which may be ""."""
        if not self._sure:
            return ""
        self._text += raw
        if len(self._text) > MAX_BODY_LENGTH:
            self._sure = False
        elif self._position is None:
            self._open()
        return self._scan() if self._position is not None else ""

    def finish(self, arguments: Mapping[str, Any]) -> str:
        """Return the rest of the JSON of the arguments that were read."""
        whole = as_json(arguments)
        return whole[len(self.told) :] if whole.startswith(self.told) else ""

    def _open(self) -> None:
        opening = _OPENING.match(self._text)
        if opening:
            self._position = self._argument_start = opening.end()
        elif len(self._text) > _LONGEST_OPENING:
            self._sure = False

    def _scan(self) -> str:
        """Follow quotes and brackets; every comma between arguments ends one."""
        fragments = []
        position, text = self._position or 0, self._text
        # A quote may turn out to be three, and a backslash takes what follows it along.
        while self._sure and position + 2 < len(text):
            char = text[position]
            step = 1
            if self._quote:
                if char == "\\":
                    step = 2
                elif text.startswith(self._quote, position):
                    step, self._quote = len(self._quote), ""
            elif char in _QUOTES:
                triple = text.startswith(char * 3, position)
                empty = not triple and text[position + 1] == char
                step = 3 if triple else 2 if empty else 1
                self._quote = "" if empty else char * (3 if triple else 1)
            elif char in "([{":
                self._depth += 1
            elif char in ")]}":
                self._depth -= 1
                # Behind the call's own end nothing more is told.
                self._sure = self._depth >= 0
            elif char == "#":
                self._sure = False
            elif char == "," and self._depth == 0:
                fragments.append(self._argument(text[self._argument_start : position]))
                self._argument_start = position + 1
            position += step
        self._position = position
        fragment = "".join(fragments)
        self.told += fragment
        return fragment

    def _argument(self, text: str) -> str:
        call = parse_tool_call("", f"tool_call({text})")
        if not isinstance(call, ToolCall) or call.repair or len(call.arguments) != 1:
            self._sure = False
            return ""
        (name,) = call.arguments
        if name in self._names:
            self._sure = False
            return ""
        opening = ", " if self._names else "{"
        self._names.add(name)
        return opening + as_json(call.arguments)[1:-1]
