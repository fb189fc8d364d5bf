"""What a reply may say: a JSON Schema, a pattern, a choice, a grammar, or calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeAlias

import attrs

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.errors import InvalidConstraintError, unknown_name


def _text(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidConstraintError(f"{attribute.name} must be a text, not {value!r:.80}")


@attrs.frozen
class JsonSchema:
    """The reply is one JSON value that this schema allows.

    Attributes:
        schema: a JSON Schema (draft 2020-12); see docs/structured-output.md for the keywords.

    Raises:
        InvalidConstraintError: not an object, or something that is not JSON.
    """

    schema: Mapping[str, Any] = attrs.field(hash=False)

    @schema.validator
    def _check_schema(self, _: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, Mapping):
            raise InvalidConstraintError(f"a JSON Schema is an object, not {value!r:.80}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidConstraintError(f"the JSON Schema is not JSON: {exc}") from exc


@attrs.frozen
class Regex:
    """The whole reply matches this pattern.

    Attributes:
        pattern: without look-around and back references; `.` does not match a newline.
    """

    pattern: str = attrs.field(validator=_text)


def _options(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise InvalidConstraintError(f"a choice is a list of texts, not {value!r:.80}")
    options = tuple(value)
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise InvalidConstraintError(f"a choice must be a text, not {option!r:.80}")
        if options.count(option) > 1:
            raise InvalidConstraintError(f"the choice {option!r:.80} is listed twice")
    if not options:
        raise InvalidConstraintError("a choice needs at least one option")
    return options


@attrs.frozen
class Choice:
    """The reply is one of these texts.

    Attributes:
        options: at least one, each once.
    """

    options: tuple[str, ...] = attrs.field(converter=_options)


@attrs.frozen
class Grammar:
    """The reply follows a context-free grammar.

    Attributes:
        lark: rules in llguidance's variant of Lark; the first one to apply is `start`.
    """

    lark: str = attrs.field(validator=_text)


Constraint: TypeAlias = JsonSchema | Regex | Choice | Grammar
"""What a plain reply may say."""


class CallRule(StrEnum):
    """Whether a reply calls tools."""

    MAY = "auto"
    MUST = "required"
    NEVER = "none"


@attrs.frozen
class ToolCalls:
    """The reply calls these tools in the model's own form, as their schemas allow.

    Attributes:
        rule: MUST makes the reply one call. MAY leaves text free, and every turn whose
            first line is not empty is a call. NEVER makes every turn text.
        tools: what may be called.
    """

    rule: CallRule
    tools: tuple[ToolSpec, ...] = ()


def tool_calls(choice: str, tools: tuple[ToolSpec, ...]) -> ToolCalls | None:
    """Read a `tool_choice`, given what is on offer.

    Args:
        choice: "auto", "none", "required", or the name of a tool that must be called.
        tools: what is on offer.

    Returns:
        The constraint, or None where "auto" has no tool to call.

    Raises:
        UnknownNameError: no such tool is on offer.
        InvalidConstraintError: "required" without tools.
    """
    if choice == CallRule.NEVER:
        return ToolCalls(CallRule.NEVER)
    if choice == CallRule.MAY:
        return ToolCalls(CallRule.MAY, tools) if tools else None
    if choice != CallRule.MUST:
        named = tuple(tool for tool in tools if tool.name == choice)
        if not named:
            raise unknown_name("tool", choice, (tool.name for tool in tools))
        return ToolCalls(CallRule.MUST, named)
    if not tools:
        raise InvalidConstraintError("tool_choice='required' needs tools to call; pass tools=[...]")
    return ToolCalls(CallRule.MUST, tools)


def response_format(value: Mapping[str, Any] | str | None) -> Constraint | None:
    """Read OpenAI's `response_format`.

    Args:
        value: `{"type": "text"}`, `{"type": "json_object"}`,
            `{"type": "json_schema", "json_schema": {"schema": {...}}}`, the type alone for
            the first two, or None.

    Returns:
        The constraint for `GenerationConfig(constraint=...)`; None leaves the text free.

    Raises:
        InvalidConstraintError: anything else; the message says where.
    """
    if value is None:
        return None
    described = {"type": value} if isinstance(value, str) else value
    kind = described.get("type") if isinstance(described, Mapping) else None
    if not isinstance(described, Mapping) or kind not in ("text", "json_object", "json_schema"):
        raise InvalidConstraintError(
            "response_format is an object whose type is 'text', 'json_object' or 'json_schema', "
            f"not {value!r:.80}"
        )
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonSchema({"type": "object"})
    named = described.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidConstraintError(
            f"response_format: /json_schema/schema must be a JSON Schema, not {schema!r:.80}"
        )
    return JsonSchema(schema)
