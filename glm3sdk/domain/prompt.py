"""What the model reads: a conversation as special tokens and text, never mixed.

The caller encodes every text segment on its own, because each gets its own dummy prefix
(the real id 30910 before the newline and before the content).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from glm3sdk.domain.chat import Message, Role, ToolSpec
from glm3sdk.domain.history import read_tools, tool_spec
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_documents import documented_tools
from glm3sdk.errors import InvalidMessageError, InvalidToolError

Segment = str | SpecialToken

GENERATION_PREFIX: tuple[Segment, ...] = (SpecialToken.GMASK, SpecialToken.SOP)

TOOL_SYSTEM_PROMPT = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)

_ROLE_TOKENS = {role: SpecialToken(f"<|{role.value}|>") for role in Role}
_READY_MADE = re.compile(r"\[gMASK\]\s*sop\s*(?=<\|(?:system|user|assistant|observation)\|>)")
_ROLE_SPLIT = re.compile(r"(<\|(?:system|user|assistant|observation)\|>)")


def render_message(message: Message) -> tuple[Segment, ...]:
    """Return a message as its role token, `metadata + newline`, and its content if any.

    Raises:
        InvalidToolError: the message's tools are not JSON.
    """
    content = message.content
    if message.tools:
        content += "\n" + _render_tools(message.tools)
    return _turn(_ROLE_TOKENS[message.role], message.metadata, content)


def render_chat(messages: Sequence[Message]) -> tuple[Segment, ...]:
    """Return the whole prompt that asks the model for the next assistant turn.

    Raises:
        InvalidMessageError: there are no messages.
        InvalidToolError: a message's tools are not JSON.
    """
    if not messages:
        raise InvalidMessageError("the history is empty; pass at least one message")
    turns = [segment for message in messages for segment in render_message(message)]
    return (*GENERATION_PREFIX, *turns, SpecialToken.ASSISTANT)


def offer_tools(
    messages: Sequence[Message], tools: Iterable[ToolSpec | Mapping[str, Any]]
) -> tuple[Message, ...]:
    """Put tools on the system message that opens the conversation; add one if there is none.

    A tool that the system message already offers, word for word, is not offered twice.

    Args:
        messages: the conversation.
        tools: what to offer, as `read_tools` takes it.

    Raises:
        InvalidToolError: a tool cannot be read, or another tool has its name.
    """
    offered = read_tools(tools)
    if not offered:
        return tuple(messages)
    if not messages or messages[0].role is not Role.SYSTEM:
        return (Message.system(TOOL_SYSTEM_PROMPT, tools=offered), *messages)
    system = messages[0]
    known = {tool.name: tool for tool in map(_readable_tool, system.tools) if tool}
    for tool in offered:
        if known.get(tool.name, tool) != tool:
            raise InvalidToolError(
                f"the system message has another tool named {tool.name!r}; rename one"
            )
    together: tuple[Any, ...] = system.tools
    together += tuple(tool for tool in offered if tool.name not in known)
    return (attrs.evolve(system, tools=together), *messages[1:])


def offered_tools(messages: Iterable[Message]) -> tuple[ToolSpec, ...]:
    """The tools that a conversation's system messages describe, as far as they can be read."""
    tools: dict[str, ToolSpec] = {}
    for message in messages:
        for value in message.tools:
            described = documented_tools(value) if isinstance(value, str) else ()
            tool = None if described else _readable_tool(value)
            for each in described or ((tool,) if tool else ()):
                tools.setdefault(each.name, each)
    return tuple(tools.values())


def parse_ready_made(text: str) -> tuple[Segment, ...] | None:
    """Read a prompt that stands in a string, special tokens and all, as decoding writes it.

    `[gMASK]sop<|user|>`, a space, a newline and ` 你好<|assistant|>` is one; the spaces are
    the dummy prefixes of the decoded segments. Only a string with this very start is read
    so: in any other text, and in messages, `<|user|>` remains text.

    Returns:
        The segments, or None for any other text.
    """
    opening = _READY_MADE.match(text)
    if opening is None:
        return None
    pieces = _ROLE_SPLIT.split(text[opening.end() :])[1:]
    segments = list(GENERATION_PREFIX)
    for position in range(0, len(pieces), 2):
        token, body = SpecialToken(pieces[position]), pieces[position + 1]
        metadata, newline, content = body.partition("\n")
        if not newline:
            metadata, content = "", body
        content = content.removeprefix(" ")
        if position == len(pieces) - 2 and not newline and not content:
            segments.append(token)
        else:
            segments.extend(_turn(token, metadata.strip(), content))
    return tuple(segments)


def _turn(token: SpecialToken, metadata: str, content: str) -> tuple[Segment, ...]:
    head = f"{metadata}\n"
    return (token, head, content) if content else (token, head)


def _render_tools(tools: Sequence[Any]) -> str:
    values = [tool.to_json() if isinstance(tool, ToolSpec) else tool for tool in tools]
    try:
        text = json.dumps(values, indent=4, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidToolError(f"the tools of a system message are not JSON: {exc}") from exc
    return text


def _readable_tool(value: Any) -> ToolSpec | None:
    """A system message may carry any JSON as its tools; only some of it has a name."""
    try:
        return tool_spec(value)
    except InvalidToolError:
        return None
