"""The log probabilities of what the model wrote, told beside a reply's text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import dropwhile
from typing import Generic

import attrs
import numpy as np

from glm3sdk.domain.chat import (
    FinishReason,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.ports.tokenizer import Tokenizer, piece_bytes
from glm3sdk.services.decode_loop import TokenChooser
from glm3sdk.services.reply_stream import ReplyStream
from glm3sdk.services.request import Event, EventStream, Request


@attrs.frozen
class TokenLogprob:
    """One token of a reply's text.

    Attributes:
        token_id: the token that was chosen.
        logprob: the natural logarithm of the probability that the model gave it, before
            temperature, penalties and constraints.
        top: the likeliest tokens of that step and theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen
class Logprobs:
    """An event before a `TextDelta`, or before the end: the tokens of its text."""

    tokens: tuple[TokenLogprob, ...]


def with_logprobs(
    request: Request[Event], *, tokenizer: Tokenizer, top: int
) -> Request[Event | Logprobs]:
    """Let a prepared request tell its log probabilities too.

    What the reader does not see is left out: calls of tools, and the blank beginning of a
    turn.

    Args:
        request: not run yet.
        tokenizer: the model's tokenizer.
        top: how many of each step's likeliest tokens to tell.
    """
    chooser = _Recorder(request.sampler, vocab_size=tokenizer.vocab_size, top=top)
    if request.constraint is not None:
        # A token that is appended without a choice has no logits to be told.
        request.constraint.choose_each()
    stream = _LogprobStream(request.stream, chooser.recorded, tokenizer)
    return Request(
        prompt_ids=request.prompt_ids,
        sampler=chooser,
        stop_ids=request.stop_ids,
        max_new_tokens=request.max_new_tokens,
        stream=stream,
        constraint=request.constraint,
        guesses=request.guesses,
    )


class _Recorder:
    """A chooser that writes down what each choice was made from."""

    def __init__(self, chooser: TokenChooser, *, vocab_size: int, top: int) -> None:
        self.recorded: deque[TokenLogprob] = deque()
        self._chooser = chooser
        self._vocab_size = vocab_size
        self._top = min(top, vocab_size)

    def sample(self, logits: FloatArray, generated: Sequence[int]) -> int:
        token_id = self._chooser.sample(logits, generated)
        scores = logits[: self._vocab_size].astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        best: Sequence[int] = ()
        if self._top:
            found = np.argpartition(-scores, self._top - 1)[: self._top]
            best = found[np.argsort(-scores[found], kind="stable")].tolist()
        top = tuple((each, float(scores[each])) for each in best)
        self.recorded.append(TokenLogprob(token_id, float(scores[token_id]), top))
        return token_id


class _LogprobStream(Generic[Event]):
    def __init__(
        self, stream: EventStream[Event], recorded: deque[TokenLogprob], tokenizer: Tokenizer
    ) -> None:
        self._stream = stream
        self._recorded = recorded
        self._tokenizer = tokenizer
        self._held: list[TokenLogprob] = []
        # A turn of a reply is shown without the blanks around it; a completion as it is.
        self._in_text = self._keeps_blanks = not isinstance(stream, ReplyStream)

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def push(self, token_id: int) -> list[Event | Logprobs]:
        # The loop records a token before it delivers it.
        token = self._recorded.popleft()
        events = self._stream.push(token_id)
        if self._tokenizer.decode([token_id, token_id]):
            self._held.append(token)
            return self._told(events)
        told = self._told(events)
        self._forget()
        return told

    def finish(self, reason: FinishReason, usage: Usage) -> list[Event | Logprobs]:
        return self._told(self._stream.finish(reason, usage))

    def _told(self, events: Sequence[Event]) -> list[Event | Logprobs]:
        told: list[Event | Logprobs] = []
        for event in events:
            if isinstance(event, TextDelta):
                tokens = self._held if self._in_text else list(dropwhile(self._blank, self._held))
                self._held, self._in_text = [], True
                told.append(Logprobs(tuple(tokens)))
            elif isinstance(event, ToolCallStart | ToolCallDelta | ToolCallEnd):
                self._forget()
            told.append(event)
        return told

    def _forget(self) -> None:
        self._held, self._in_text = [], self._keeps_blanks

    def _blank(self, token: TokenLogprob) -> bool:
        return not piece_bytes(self._tokenizer.piece(token.token_id)).strip()
