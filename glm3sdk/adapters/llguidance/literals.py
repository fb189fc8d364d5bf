"""How values are written: as JSON, or as the Python literals of a tool call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

# A control character stands in neither kind of string unless it is escaped.
_PLAIN = r"[^%s\\\x00-\x1f]"


@attrs.frozen
class Literals:
    """One way of writing JSON values.

    Attributes:
        quotes: what a string may stand between.
        escaped: what may follow a backslash in a string, as the inside of a character class.
        true, false, null: these values.
    """

    quotes: tuple[str, ...]
    escaped: str
    true: str
    false: str
    null: str

    def character(self, quote: str) -> str:
        """A pattern of one character of a string, as it is written."""
        return rf"(?:{self.unescaped(quote)}|\\[{self.escaped}])"

    def unescaped(self, quote: str) -> str:
        """A pattern of one character that needs no escape."""
        return _PLAIN % quote

    def spellings(self, value: Any) -> tuple[str, ...]:
        """The texts that write a value; a string has one for each kind of quotes.

        Raises:
            ValueError: no text can hold it.
        """
        if not isinstance(value, str):
            return (self._written(value),)
        return tuple(dict.fromkeys(self._quoted(value, quote) for quote in self.quotes))

    def _written(self, value: Any) -> str:
        if value is None:
            return self.null
        if isinstance(value, bool):
            return self.true if value else self.false
        if isinstance(value, str):
            return self._quoted(value, self.quotes[0])
        if isinstance(value, Mapping):
            items = (f"{self._written(key)}: {self._written(each)}" for key, each in value.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._written, value))}]"
        return repr(value)

    def _quoted(self, value: str, quote: str) -> str:
        value.encode()  # half of a character is no text
        inner = json.dumps(value, ensure_ascii=False)[1:-1]
        if quote == "'":
            inner = inner.replace('\\"', '"').replace("'", "\\'")
        return f"{quote}{inner}{quote}"


JSON = Literals(('"',), r'"\\bfnrt', "true", "false", "null")
PYTHON = Literals(("'", '"'), r"'\"\\nrt", "True", "False", "None")
