"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, TypeAlias

from glm3sdk.domain.chat import Completion, CompletionEnd, TextDelta
from glm3sdk.errors import InvalidMessageError, PromptTooLongError
from glm3sdk.ports.tokenizer import piece_bytes
from glm3sdk.server.endpoint import Endpoint
from glm3sdk.server.exchange import Exchange
from glm3sdk.server.failures import as_api_error
from glm3sdk.server.generation import completion_config
from glm3sdk.server.replies import Envelope, usage_json
from glm3sdk.server.schemas import CompletionRequest
from glm3sdk.services.logprobs import Logprobs, TokenLogprob, with_logprobs
from glm3sdk.services.request import Request

_Event: TypeAlias = TextDelta | CompletionEnd | Logprobs


class Completions(Endpoint[CompletionRequest]):
    """Goes on with texts: `n` times with the first, then with the second, and so on."""

    name = "completions"
    schema = CompletionRequest

    def count(self, asked: CompletionRequest) -> int:
        """One generation for each choice of each prompt."""
        return len(asked.prompts) * asked.choices

    async def answer(self, asked: CompletionRequest, exchange: Exchange) -> None:
        """Answer with a `text_completion`, or stream it in pieces."""
        requests = await asyncio.to_thread(self._prepare, asked)
        envelope = Envelope.new("cmpl", "text_completion", self.server.model_name)
        further: dict[str, Any] = {"usage": None} if asked.includes_usage else {}
        ends: dict[int, Completion] = {}
        logprobs = [_Logprobs(self, asked) for _ in requests]
        first_token = self.server.metrics.stopwatch(self.name)
        async with aclosing(self.server.service.arun(requests)) as events:
            async for index, event in events:
                first_token.came()
                reason = None
                if isinstance(event, Logprobs):
                    logprobs[index].take(event.tokens)
                    continue
                if isinstance(event, CompletionEnd):
                    ends[index] = event.completion
                    self.server.metrics.used(event.completion.usage)
                    reason = event.completion.finish_reason.value
                if asked.stream:
                    told = _choice(index, event.content, logprobs[index].told(), reason)
                    await exchange.event(envelope.around([told], **further))
        usage = usage_json((n // asked.choices, end.usage) for n, end in sorted(ends.items()))
        if not asked.stream:
            choices = [
                _choice(n, end.text, logprobs[n].told(), end.finish_reason.value)
                for n, end in sorted(ends.items())
            ]
            await exchange.answer(envelope.around(choices, usage=usage))
            return
        if asked.includes_usage:
            await exchange.event(envelope.around([], usage=usage))
        await exchange.done()

    def _prepare(self, asked: CompletionRequest) -> list[Request[_Event]]:
        service = self.server.service
        requests: list[Request[_Event]] = []
        for prompt in asked.prompts:
            for choice in range(asked.choices):
                try:
                    config = completion_config(asked, choice=choice)
                    request: Request[Any] = service.prepare_completion(prompt, config)
                except (InvalidMessageError, PromptTooLongError) as exc:
                    failure = as_api_error(exc)
                    failure.param = "prompt"
                    raise failure from exc
                if asked.logprobs is not None:
                    request = with_logprobs(
                        request, tokenizer=service.tokenizer, top=asked.logprobs
                    )
                requests.append(request)
        return requests


class _Logprobs:
    """The log probabilities of one choice in the old API's form."""

    def __init__(self, endpoint: Completions, asked: CompletionRequest) -> None:
        self._tokenizer = endpoint.server.service.tokenizer
        self._wanted = asked.logprobs is not None
        self._tokens: list[TokenLogprob] = []
        self._offset = 0

    def take(self, tokens: tuple[TokenLogprob, ...]) -> None:
        """Take the tokens of the next piece of text."""
        self._tokens += tokens

    def told(self) -> dict[str, Any] | None:
        """What was taken since the last time."""
        if not self._wanted:
            return None
        tokens, self._tokens = self._tokens, []
        texts = [self._text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {self._text(token_id): _finite(logprob) for token_id, logprob in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return piece_bytes(self._tokenizer.piece(token_id)).decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
