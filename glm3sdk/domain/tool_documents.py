"""Tools that are described in words, as ToolAlpaca's data describes them.

    getForecast: Tells the weather to come.
    Parameters: {"city": "Required. string. ...", "unit": "string. One of: [c, f]. ..."}
    Output: ...

The format is that of the published data set (Tang et al. 2023), which ChatGLM3 was tuned on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from glm3sdk.domain.chat import ToolSpec

_TOOL = re.compile(r"^(?P<name>[^\W\d][\w.\-]*): (?P<description>.*)\nParameters: ", re.MULTILINE)
_ARRAY = re.compile(r"array\s*[\[<(]\s*(\w+)", re.IGNORECASE)
_CHOICES = re.compile(r"One of: \[([^\]]*)\]")
_TYPES = {
    "array": "array",
    "bool": "boolean",
    "boolean": "boolean",
    "float": "number",
    "int": "integer",
    "integer": "integer",
    "list": "array",
    "number": "number",
    "object": "object",
    "string": "string",
}


def documented_tools(text: str) -> tuple[ToolSpec, ...]:
    """The tools that a document describes; none where it has another form.

    A parameter whose type cannot be read takes any value. Choices count for texts alone.
    """
    tools: dict[str, ToolSpec] = {}
    for match in _TOOL.finditer(text):
        try:
            described, _ = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        if isinstance(described, Mapping) and match["name"] not in tools:
            parameters = {
                "type": "object",
                "properties": {name: _schema(str(words)) for name, words in described.items()},
                "required": [name for name, words in described.items() if _required(str(words))],
            }
            tools[match["name"]] = ToolSpec(match["name"], match["description"], parameters)
    return tuple(tools.values())


def _required(words: str) -> bool:
    return words.lower().startswith("required")


def _schema(words: str) -> dict[str, Any]:
    parts = [part.strip() for part in words.split(".")]
    kind = parts[1] if parts[0].lower() in ("required", "optional") and parts[1:] else parts[0]
    schema: dict[str, Any] = {}
    array = _ARRAY.match(kind)
    word = "array" if array else kind.split(" ")[0].lower()
    if word in _TYPES:
        schema["type"] = _TYPES[word]
    if array and array[1].lower() in _TYPES:
        schema["items"] = {"type": _TYPES[array[1].lower()]}
    choices = _CHOICES.search(words)
    if choices and schema.get("type") == "string":
        schema["enum"] = [choice.strip(" '\"") for choice in choices[1].split(",")]
    return schema
