"""Calls Python functions for the model until it answers without calling one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from glm3sdk.domain.chat import (
    CodeCell,
    FinishReason,
    MalformedToolCall,
    Message,
    Reply,
    Text,
    ToolCall,
    ToolSpec,
)
from glm3sdk.domain.constraints import CallRule
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.history import read_history
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.domain.tool_functions import Tool, as_tool
from glm3sdk.errors import InvalidGenerationConfigError, InvalidToolError, unknown_name

_log = logging.getLogger(__name__)

_Call: TypeAlias = ToolCall | CodeCell | MalformedToolCall


class Chat(Protocol):
    """Answers a conversation; `Glm3Service.chat` is one."""

    def __call__(
        self,
        history: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig | None,
        tools: Sequence[ToolSpec],
    ) -> Reply:
        """Answer a conversation, with tools on offer."""


def run_tools(
    chat: Chat,
    history: Sequence[Message | Mapping[str, Any]],
    tools: Sequence[Tool | Callable[..., Any]],
    *,
    config: GenerationConfig | None,
    max_rounds: int,
) -> Reply:
    """Answer a conversation with tools; see `Glm3Service.run_tools`."""
    if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 0:
        raise InvalidGenerationConfigError(
            f"max_rounds must be an integer from 0, not {max_rounds!r}"
        )
    known = tools_by_name(tools)
    specs = [each.spec for each in known.values()]
    messages = read_history(history)
    reply = chat(messages, config, specs)
    if config is not None and config.tool_choice not in (None, CallRule.MAY, CallRule.NEVER):
        # Asked for in every round, calls would never come to an end.
        config = attrs.evolve(config, tool_choice=CallRule.MAY.value)
    for _ in range(max_rounds):
        answered = answer_calls(reply, len(messages), known)
        if not answered:
            break
        messages = answered
        reply = chat(messages, config, specs)
    return reply


def tools_by_name(tools: Sequence[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    """The tools, described, by the names that the model calls.

    Raises:
        InvalidToolError: a function that cannot be described, or two tools of one name.
    """
    known: dict[str, Tool] = {}
    for each in map(as_tool, tools):
        if each.spec.name in known:
            raise InvalidToolError(f"two tools are named {each.spec.name!r}; rename one")
        known[each.spec.name] = each
    return known


def _can_answer(reply: Reply, known: Mapping[str, Tool]) -> bool:
    calls = _calls(reply)
    if not calls or reply.finish_reason is FinishReason.LENGTH:
        return False
    return INTERPRETER in known or not any(isinstance(call, CodeCell) for call in calls)


def _calls(reply: Reply) -> list[_Call]:
    return [part for part in reply.parts if not isinstance(part, Text)]


def answer_calls(reply: Reply, asked: int, known: Mapping[str, Tool]) -> tuple[Message, ...]:
    """The reply's history with an observation behind each call; empty where there is none.

    A reply that was cut off, or that has code and no interpreter is known, is left as it is.

    Args:
        reply: what the model wrote.
        asked: number of messages before the reply.
        known: the tools by name.
    """
    if not _can_answer(reply, known):
        return ()
    messages = list(reply.history[:asked])
    calls = iter(_calls(reply))
    for message in reply.history[asked:]:
        messages.append(message)
        # A turn with metadata is one call, whether it can be read or not.
        if message.metadata:
            messages.append(Message.observation(_observe(next(calls), known)))
    return tuple(messages)


def _observe(call: _Call, known: Mapping[str, Tool]) -> str:
    if isinstance(call, MalformedToolCall):
        return _error(f"the call of {call.name!r} cannot be read: {call.reason}")
    name, arguments = (
        (INTERPRETER, {"code": call.code})
        if isinstance(call, CodeCell)
        else (call.name, call.arguments)
    )
    if name not in known:
        return _error(str(unknown_name("tool", name, known)))
    try:
        return _as_text(known[name].function(**arguments))
    except Exception as exc:
        # Arguments and results may be private: the log names only the tool and the error.
        _log.warning("tool %r raised %s", name, type(exc).__name__)
        return _error(f"{type(exc).__name__}: {exc}")


def _error(text: str) -> str:
    return _as_text({"error": text})


def _as_text(result: object) -> str:
    text = result if isinstance(result, str) else _as_json(result)
    # A file name may hold half a character, which no message can.
    return text.encode("utf-8", "replace").decode("utf-8")


def _as_json(result: object) -> str:
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)
