"""OpenAI's tool calls and the model's: each becomes the other."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glm3sdk.domain.chat import CodeCell, MalformedToolCall, Message, Part, Text, ToolCall
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.server.tool_arguments import as_json

Call = ToolCall | CodeCell | MalformedToolCall


def new_call_id() -> str:
    """An id by which a client answers a call."""
    return f"call_{secrets.token_hex(12)}"


def call_name(call: Call) -> str:
    """The name under which a client sees a call."""
    return INTERPRETER if isinstance(call, CodeCell) else call.name


def call_arguments(call: Call) -> str:
    """A call's arguments: JSON, or what the model wrote where that cannot be read.

    OpenAI's clients are used to arguments that are no JSON; hiding them would leave a reply
    without content.
    """
    if isinstance(call, MalformedToolCall):
        return call.raw.partition("\n")[2].strip()
    return as_json({"code": call.code} if isinstance(call, CodeCell) else call.arguments)


def calls_json(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The calls of a reply."""
    return [
        {
            "id": new_call_id(),
            "type": "function",
            "function": {"name": call_name(part), "arguments": call_arguments(part)},
        }
        for part in parts
        if not isinstance(part, Text)
    ]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message | Mapping[str, Any]]:
    """Bring a client's messages into what the service reads.

    Calls whose arguments the service would not read are those that `call_arguments` made of
    the model's own text; they become that text again. Each is followed by its answer.

    Raises:
        InvalidMessageError: a call that no message can hold.
    """
    read: list[Message | Mapping[str, Any]] = []
    moved: set[int] = set()
    for position, message in enumerate(messages):
        if position in moved:
            continue
        for part, call_id in _split(message):
            read.append(part)
            answer = None if call_id is None else _answer(messages, position, call_id)
            if answer is not None and answer not in moved:
                moved.add(answer)
                read.append(messages[answer])
    return read


def _split(
    message: Mapping[str, Any],
) -> Iterable[tuple[Message | Mapping[str, Any], object | None]]:
    """A message, or its text and its calls apart, each call with its id."""
    calls = message.get("tool_calls")
    if message.get("role") != "assistant" or not isinstance(calls, list):
        return [(message, None)]
    own = [_own_text(call) for call in calls]
    if not any(own):
        return [(message, None)]
    split: list[tuple[Message | Mapping[str, Any], object | None]] = []
    if message.get("content"):
        split.append(({"role": "assistant", "content": message["content"]}, None))
    for call, text in zip(calls, own, strict=True):
        call_id = call.get("id") if isinstance(call, Mapping) else None
        split.append((text or {"role": "assistant", "tool_calls": [call]}, call_id))
    return split


def _answer(messages: Sequence[Mapping[str, Any]], position: int, call_id: object) -> int | None:
    """Where the answer to a call is, among the answers that follow its message at once."""
    for later in range(position + 1, len(messages)):
        if messages[later].get("role") != "tool":
            return None
        if messages[later].get("tool_call_id") == call_id:
            return later
    return None


def _own_text(call: object) -> Message | None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return None
    name, written = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not isinstance(written, str) or not name.strip():
        return None
    try:
        arguments = json.loads(written or "{}")
    except (ValueError, RecursionError):
        return Message.assistant(written, metadata=name)
    if name != INTERPRETER or not isinstance(arguments, dict) or set(arguments) != {"code"}:
        return None
    code = arguments["code"]
    if not isinstance(code, str):
        return None
    return Message.assistant(f"```python\n{code}\n```", metadata=name)
