"""What the answers of both endpoints have in common: ids, finish reasons, token counts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

import attrs

from glm3sdk.domain.chat import FinishReason, Reply, Text, Usage
from glm3sdk.ports.tokenizer import Tokenizer, piece_bytes
from glm3sdk.services.logprobs import TokenLogprob


@attrs.frozen
class Envelope:
    """The outside of an answer, the same for every chunk of a stream.

    Attributes:
        id: the answer's id.
        kind: OpenAI's name of the object.
        model: the name under which the model is served.
        created: when it was asked for, in seconds since 1970.
    """

    id: str
    kind: str
    model: str
    created: int = attrs.field(factory=lambda: int(time.time()))

    @classmethod
    def new(cls, prefix: str, kind: str, model: str) -> Envelope:
        """An envelope with an id of its own."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", kind, model)

    def around(self, choices: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
        """The object with these choices."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **further,
        }


def finish_reason(reply: Reply) -> str:
    """Why a reply ended, as OpenAI says it: any call, readable or not, is `tool_calls`."""
    calls = any(not isinstance(part, Text) for part in reply.parts)
    if calls and reply.finish_reason is not FinishReason.LENGTH:
        return FinishReason.TOOL_CALLS.value
    return reply.finish_reason.value


def usage_json(usages: Iterable[tuple[int, Usage]]) -> dict[str, Any]:
    """The token counts of several replies together; a prompt counts once.

    Args:
        usages: each with the number of its prompt.
    """
    prompts: dict[int, Usage] = {}
    written = 0
    for prompt, usage in usages:
        # The first reply to a prompt reads it, and the others take that over.
        prompts.setdefault(prompt, usage)
        written += usage.completion_tokens
    read = sum(usage.prompt_tokens for usage in prompts.values())
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.cached_tokens for usage in prompts.values())
        },
    }


def logprobs_json(
    tokens: Iterable[TokenLogprob], tokenizer: Tokenizer, *, top: int
) -> dict[str, Any]:
    """Log probabilities in the chat API's form."""

    def described(token_id: int, logprob: float) -> dict[str, Any]:
        raw = piece_bytes(tokenizer.piece(token_id))
        return {
            "token": raw.decode("utf-8", "replace"),
            # JSON has no infinity: this is what OpenAI tells of a token that cannot be.
            "logprob": max(logprob, -9999.0),
            "bytes": list(raw),
        }

    return {
        "content": [
            {
                **described(token.token_id, token.logprob),
                "top_logprobs": [described(*each) for each in token.top[:top]],
            }
            for token in tokens
        ]
    }
