"""From a request's parameters to the service's."""

from __future__ import annotations

from typing import Any

from glm3sdk.domain.constraints import CallRule, response_format
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.server.schemas import ChatRequest, CompletionRequest, NamedTool


def chat_config(asked: ChatRequest, *, choice: int) -> GenerationConfig:
    """The parameters of one reply to a conversation.

    Args:
        asked: the request.
        choice: which of its `n` replies, counted from 0.

    Raises:
        UserError: a value or a combination that cannot be.
    """
    return GenerationConfig(
        max_new_tokens=asked.most_tokens,
        tool_choice=_tool_choice(asked),
        constraint=response_format(asked.response_format),
        **_sampling(asked, choice),
    )


def completion_config(asked: CompletionRequest, *, choice: int) -> GenerationConfig:
    """The parameters of one continuation; arguments and errors as for `chat_config`."""
    return GenerationConfig(max_new_tokens=asked.max_tokens, **_sampling(asked, choice))


def _sampling(asked: ChatRequest | CompletionRequest, choice: int) -> dict[str, Any]:
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "repetition_penalty": asked.repetition_penalty,
        "stop": asked.stop,
        "logit_bias": asked.logit_bias,
    }
    if asked.top_p == 0:
        # No probability is reached by the likeliest token alone.
        given["top_p"], given["do_sample"] = None, False
    if asked.seed is not None:
        # The replies to one prompt differ, and all come back with the seed.
        given["seed"] = (asked.seed + choice) % 2**64
    return {name: value for name, value in given.items() if value is not None}


def _tool_choice(asked: ChatRequest) -> str | None:
    if isinstance(asked.tool_choice, NamedTool):
        return asked.tool_choice.function.name
    if asked.tool_choice == "required":
        return CallRule.MUST.value
    if not asked.tools:
        return None
    if asked.tool_choice == "none":
        return CallRule.NEVER.value
    # The model may call as it likes, unless a tool asks to be called by its schema alone.
    return CallRule.MAY.value if any(map(_is_strict, asked.tools)) else None


def _is_strict(tool: dict[str, Any]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and function.get("strict") is True
