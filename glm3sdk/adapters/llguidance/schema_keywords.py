"""The keywords of JSON Schema: what each must be, and which cannot be enforced."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from glm3sdk.errors import InvalidConstraintError, UnsupportedSchemaError

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

# They change nothing about which values are allowed where they have these values.
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "uniqueItems": lambda value: value is False,
    "minContains": lambda value: value == 0,
}
_UNSUPPORTED = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "patternProperties",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return _number(value) and value >= 0 and value == int(value)


def _schema(value: Any) -> bool:
    return isinstance(value, bool | Mapping)


def _schemas(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_schema, value))


def _named_schemas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_schema, value.values()))


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _type(value: Any) -> bool:
    kinds = [value] if isinstance(value, str) else value
    return _names(kinds) and bool(kinds) and all(kind in TYPES for kind in kinds)


def _pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


_TEXT = "text", lambda value: isinstance(value, str)
_A_NUMBER = "a number", _number
_A_COUNT = "an integer from 0", _count
_A_SCHEMA = "a schema", _schema
_SCHEMAS = "a list of schemas, not empty", _schemas

_KEYWORDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "$ref": _TEXT,
    "additionalProperties": _A_SCHEMA,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "const": ("a value", lambda _: True),
    "enum": ("a list", lambda value: isinstance(value, list | tuple)),
    "exclusiveMaximum": _A_NUMBER,
    "exclusiveMinimum": _A_NUMBER,
    "format": _TEXT,
    "items": _A_SCHEMA,
    "maxItems": _A_COUNT,
    "maxLength": _A_COUNT,
    "maxProperties": _A_COUNT,
    "maximum": _A_NUMBER,
    "minItems": _A_COUNT,
    "minLength": _A_COUNT,
    "minProperties": _A_COUNT,
    "minimum": _A_NUMBER,
    "multipleOf": ("a number above 0", lambda value: _number(value) and value > 0),
    "oneOf": _SCHEMAS,
    "pattern": ("a regular expression", _pattern),
    "prefixItems": _SCHEMAS,
    "properties": ("an object of schemas", _named_schemas),
    "required": ("a list of names", _names),
    "type": (f"one or some of {', '.join(TYPES)}", _type),
}


def assertions(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keywords that say which values are allowed; remarks and unknown words left out.

    Args:
        schema: a schema.
        place: where it stands, as a JSON pointer.

    Raises:
        UnsupportedSchemaError: a keyword that cannot be enforced.
        InvalidConstraintError: a keyword whose value is not what it must be.
    """
    found = {}
    for keyword, value in schema.items():
        if keyword in _UNSUPPORTED:
            if not (keyword in _HARMLESS and _HARMLESS[keyword](value)):
                raise unsupported(place, keyword, f"{keyword!r} cannot be enforced")
        elif keyword in _KEYWORDS:
            wanted, fits = _KEYWORDS[keyword]
            if not fits(value):
                raise InvalidConstraintError(
                    f"the JSON Schema at {pointer(place, keyword)}: {keyword} must be {wanted}, "
                    f"not {value!r:.80}"
                )
            found[keyword] = value
    return found


def pointer(place: str, *steps: object) -> str:
    """A JSON pointer that goes on, its steps escaped (RFC 6901)."""
    return "/".join([place, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])


def unsupported(place: str, keyword: str, reason: str) -> UnsupportedSchemaError:
    """The error for a keyword that cannot be enforced here."""
    return UnsupportedSchemaError(
        f"the JSON Schema at {pointer(place, keyword)}: {reason} while a reply is written; "
        "leave it out and check the value afterwards"
    )
