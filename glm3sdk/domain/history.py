"""Conversations and tools in the shapes that callers have: values or OpenAI-style dicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from glm3sdk.domain.chat import Message, Role, ToolSpec
from glm3sdk.domain.tool_calls import render_tool_call
from glm3sdk.errors import InvalidMessageError, InvalidToolError

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.OBSERVATION,
    "function": Role.OBSERVATION,
    "observation": Role.OBSERVATION,
}


@attrs.frozen
class _Entry:
    message: Message
    call_id: str | None = None
    answers: str | None = None


def read_history(history: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read messages, each a `Message` or a dict as OpenAI's chat API and ChatGLM3 have it.

    Several tool calls whose results follow together are put in the model's order: each
    call is followed by its result.

    Raises:
        InvalidMessageError: an item cannot be read; the message has its index and value.
        InvalidToolError: the tools of a system message are not a list.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise InvalidMessageError(f"a history is a list of messages, not {history!r:.80}")
    entries: list[_Entry] = []
    for index, item in enumerate(history):
        try:
            entries.extend(_entries(item))
        except InvalidMessageError as exc:
            raise InvalidMessageError(f"message {index}: {exc}") from exc
        except InvalidToolError as exc:
            raise InvalidToolError(f"message {index}: {exc}") from exc
    return tuple(entry.message for entry in _paired(entries))


def tool_spec(value: ToolSpec | Mapping[str, Any]) -> ToolSpec:
    """Read a tool: a `ToolSpec`, `{"name": ...}`, or `{"type": "function", "function": ...}`.

    Raises:
        InvalidToolError: neither of them.
    """
    if isinstance(value, ToolSpec):
        return value
    described = value
    if isinstance(value, Mapping) and value.get("type") == "function" and "function" in value:
        described = value["function"]
    if not isinstance(described, Mapping) or "name" not in described:
        raise InvalidToolError(
            "a tool is a ToolSpec or an object with name, description and parameters "
            f"(or one under 'function'), not {value!r:.80}"
        )
    description, parameters = described.get("description"), described.get("parameters")
    return ToolSpec(
        described["name"],
        "" if description is None else description,
        {} if parameters is None else parameters,
    )


def read_tools(values: Iterable[ToolSpec | Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """Read a list of tools.

    Raises:
        InvalidToolError: not a list, a tool that cannot be read, or two of one name.
    """
    tools: dict[str, ToolSpec] = {}
    for tool in map(tool_spec, _tool_list(values)):
        if tool.name in tools:
            raise InvalidToolError(f"two tools are named {tool.name!r}; rename one")
        tools[tool.name] = tool
    return tuple(tools.values())


def _tool_list(values: object) -> tuple[Any, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidToolError(f"tools are a list of tools, not {values!r:.80}")
    return tuple(values)


def _entries(item: object) -> Iterator[_Entry]:
    if isinstance(item, Message):
        yield _Entry(item)
        return
    if not isinstance(item, Mapping):
        raise InvalidMessageError(f"expected a Message or a dict, not {item!r:.80}")
    if "role" not in item:
        raise InvalidMessageError(f"no role (known: {', '.join(sorted(_ROLES))}): {item!r:.80}")
    name = item["role"]
    role = name if isinstance(name, Role) else None
    if isinstance(name, str):
        role = _ROLES.get(name)
    if role is None:
        raise InvalidMessageError(f"unknown role {name!r:.80} (known: {', '.join(sorted(_ROLES))})")
    calls = tuple(_calls(item))
    if calls and role is not Role.ASSISTANT:
        raise InvalidMessageError(f"only an assistant message calls tools, not {name!r}")
    content = "" if calls and item.get("content") is None else _content(item)
    if content or not calls:
        metadata = item.get("metadata")
        message = Message(
            role,
            content,
            metadata="" if metadata is None else metadata,
            tools=() if item.get("tools") is None else _tool_list(item["tools"]),
        )
        answers = item.get("tool_call_id") if role is Role.OBSERVATION else None
        yield _Entry(message, answers=answers)
    yield from calls


def _content(item: Mapping[str, Any]) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidMessageError(f"content must be text, not {content!r:.80}")
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise InvalidMessageError(
                f"content can hold text alone ({{'type': 'text', 'text': ...}}), not {part!r:.80}"
            )
        texts.append(text)
    return "".join(texts)


def _calls(item: Mapping[str, Any]) -> Iterator[_Entry]:
    calls = item.get("tool_calls")
    if calls is None:
        calls = []
    if not isinstance(calls, list | tuple):
        raise InvalidMessageError(f"tool_calls must be a list, not {calls!r:.80}")
    for call in calls:
        if not isinstance(call, Mapping):
            raise InvalidMessageError(f"a tool call must be an object, not {call!r:.80}")
        yield _Entry(_call(call.get("function")), call_id=call.get("id"))
    if item.get("function_call") is not None:
        yield _Entry(_call(item["function_call"]))


def _call(function: object) -> Message:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name.strip():
        raise InvalidMessageError(
            f"a tool call needs a function with name and arguments, not {function!r:.80}"
        )
    given = arguments = function.get("arguments")
    if isinstance(given, str):
        try:
            # Clients write "" where a call has no arguments.
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError) as exc:
            raise InvalidMessageError(f"arguments of {name!r} are not JSON: {given!r:.80}") from exc
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InvalidMessageError(f"arguments of {name!r} must be an object, not {given!r:.80}")
    return Message.assistant(render_tool_call(arguments), metadata=name)


def _paired(entries: Sequence[_Entry]) -> list[_Entry]:
    """Move each answer behind its call, within a run of calls and answers."""
    ordered = list(entries)
    for position in range(len(ordered)):
        call_id = ordered[position].call_id
        if call_id is None:
            continue
        for later in range(position + 1, len(ordered)):
            entry = ordered[later]
            if entry.answers == call_id:
                ordered.insert(position + 1, ordered.pop(later))
                break
            if entry.call_id is None and entry.answers is None:
                break
    return ordered
