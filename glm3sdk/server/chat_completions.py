"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

from glm3sdk.domain.chat import (
    Delta,
    MalformedToolCall,
    Reply,
    ReplyEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.errors import UserError
from glm3sdk.server.endpoint import Endpoint
from glm3sdk.server.exchange import Exchange
from glm3sdk.server.failures import as_api_error
from glm3sdk.server.generation import chat_config
from glm3sdk.server.replies import Envelope, finish_reason, logprobs_json, usage_json
from glm3sdk.server.schemas import ChatRequest
from glm3sdk.server.tool_arguments import ArgumentStream
from glm3sdk.server.tools import call_arguments, calls_json, new_call_id, read_messages
from glm3sdk.services.logprobs import Logprobs, TokenLogprob, with_logprobs
from glm3sdk.services.request import Request

_Event: TypeAlias = Delta | Logprobs
_Events: TypeAlias = AsyncGenerator[tuple[int, _Event], None]


class ChatCompletions(Endpoint[ChatRequest]):
    """Answers conversations."""

    name = "chat.completions"
    schema = ChatRequest

    def count(self, asked: ChatRequest) -> int:
        """One generation for each choice."""
        return asked.choices

    async def answer(self, asked: ChatRequest, exchange: Exchange) -> None:
        """Answer with a `chat.completion`, or stream its chunks."""
        requests = await asyncio.to_thread(self._prepare, asked)
        first_token = self.server.metrics.stopwatch(self.name)
        async with aclosing(self.server.service.arun(requests)) as events:
            if asked.stream:
                await self._stream(asked, _timed(events, first_token.came), exchange)
            else:
                await self._whole(asked, _timed(events, first_token.came), exchange)

    def _prepare(self, asked: ChatRequest) -> list[Request[_Event]]:
        service = self.server.service
        messages = read_messages(asked.messages)
        requests: list[Request[_Event]] = []
        for choice in range(asked.choices):
            try:
                config = chat_config(asked, choice=choice)
                request: Request[Any] = service.prepare_chat(messages, config, asked.tools)
            except UserError as exc:
                param = "response_format" if asked.response_format else None
                raise as_api_error(exc, param=param or ("tools" if asked.tools else None)) from exc
            if asked.logprobs:
                request = with_logprobs(
                    request, tokenizer=service.tokenizer, top=asked.top_logprobs or 0
                )
            requests.append(request)
        return requests

    async def _whole(self, asked: ChatRequest, events: _Events, exchange: Exchange) -> None:
        replies: dict[int, Reply] = {}
        tokens: dict[int, list[TokenLogprob]] = {n: [] for n in range(asked.choices)}
        async for choice, event in events:
            if isinstance(event, Logprobs):
                tokens[choice] += event.tokens
            elif isinstance(event, ReplyEnd):
                replies[choice] = event.reply
                self.server.metrics.used(event.reply.usage)
        choices = [
            {
                "index": choice,
                "message": _message(reply),
                "logprobs": self._logprobs(asked, tokens[choice]),
                "finish_reason": finish_reason(reply),
            }
            for choice, reply in sorted(replies.items())
        ]
        usage = usage_json((0, reply.usage) for _, reply in sorted(replies.items()))
        envelope = Envelope.new("chatcmpl", "chat.completion", self.server.model_name)
        await exchange.answer(envelope.around(choices, usage=usage))

    async def _stream(self, asked: ChatRequest, events: _Events, exchange: Exchange) -> None:
        envelope = Envelope.new("chatcmpl", "chat.completion.chunk", self.server.model_name)
        # OpenAI tells null in every chunk but the last one.
        further: dict[str, Any] = {"usage": None} if asked.includes_usage else {}

        async def send(choice: int, delta: dict[str, Any], **values: Any) -> None:
            told = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
            await exchange.event(envelope.around([{**told, **values}], **further))

        for choice in range(asked.choices):
            await send(choice, {"role": "assistant", "content": ""})
        calls = {choice: _CallStream() for choice in range(asked.choices)}
        replies: dict[int, Reply] = {}
        logprobs: dict[int, dict[str, Any] | None] = {}
        async for choice, event in events:
            if isinstance(event, Logprobs):
                logprobs[choice] = self._logprobs(asked, event.tokens)
            elif isinstance(event, TextDelta):
                await send(choice, {"content": event.content}, logprobs=logprobs.pop(choice, None))
            elif isinstance(event, ReplyEnd):
                replies[choice] = event.reply
                self.server.metrics.used(event.reply.usage)
                await send(choice, {}, finish_reason=finish_reason(event.reply))
            else:
                for delta in calls[choice].deltas(event):
                    await send(choice, {"tool_calls": [delta]})
        if asked.includes_usage:
            usage = usage_json((0, reply.usage) for _, reply in sorted(replies.items()))
            await exchange.event(envelope.around([], usage=usage))
        await exchange.done()

    def _logprobs(
        self, asked: ChatRequest, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]
    ) -> dict[str, Any] | None:
        if not asked.logprobs:
            return None
        return logprobs_json(tokens, self.server.service.tokenizer, top=asked.top_logprobs or 0)


class _CallStream:
    """The deltas of one reply's tool calls."""

    def __init__(self) -> None:
        self._arguments = ArgumentStream()
        self._code = False

    def deltas(self, event: ToolCallStart | ToolCallDelta | ToolCallEnd) -> list[dict[str, Any]]:
        """What a client is told of an event."""
        if isinstance(event, ToolCallStart):
            self._arguments, self._code = ArgumentStream(), event.name == INTERPRETER
            function = {"name": event.name, "arguments": ""}
            start = {"index": event.index, "id": new_call_id(), "type": "function"}
            return [{**start, "function": function}]
        if isinstance(event, ToolCallDelta):
            # Code is one argument, so there is nothing to tell before its end.
            fragment = "" if self._code else self._arguments.feed(event.raw)
        else:
            fragment = self._rest(event)
        return [{"index": event.index, "function": {"arguments": fragment}}] if fragment else []

    def _rest(self, end: ToolCallEnd) -> str:
        told, part = self._arguments.told, end.part
        if isinstance(part, MalformedToolCall) and told:
            return ""  # what was told stays open, which no reader takes for whole JSON
        whole = call_arguments(part)
        return whole[len(told) :] if whole.startswith(told) else ""


def _message(reply: Reply) -> dict[str, Any]:
    calls = calls_json(reply.parts)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.content or (None if calls else ""),
        "refusal": None,
    }
    return {**message, "tool_calls": calls} if calls else message


async def _timed(events: _Events, came: Any) -> _Events:
    async for each in events:
        came()
        yield each
