from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from services.echo_runtime import TOKENIZER

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.chat import Message, ReplyEnd, TextDelta
from glm3sdk.domain.constraints import Choice
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.logprobs import Logprobs, TokenLogprob, with_logprobs
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

HI = [Message.user("hi")]


class Flat(ScriptedRuntime):
    """Gives every token of a step the same logit, but for the one that the script has next."""

    def start_decode(self, **options):
        session = super().start_decode(**options)
        logits_of = session._logits

        def logits(state, length):
            found = logits_of(state, length)
            return np.where(found == found.max(), np.float32(2.0), np.float32(0.0))

        session._logits = logits
        return session


def told(runtime: ScriptedRuntime, config: GenerationConfig, *, top: int):
    async def run():
        request = service.prepare_chat(HI, config)
        return [
            event
            async for _, event in service.arun(
                [with_logprobs(request, tokenizer=TOKENIZER, top=top)]
            )
        ]

    with Glm3Service(
        runtime=runtime, tokenizer=TOKENIZER, constraints=LlguidanceConstraints(TOKENIZER)
    ) as service:
        return asyncio.run(run())


def tokens(events) -> list[TokenLogprob]:
    return [token for event in events if isinstance(event, Logprobs) for token in event.tokens]


def test_they_are_the_log_softmax_of_the_model_s_logits_whatever_the_sampling():
    # One logit of 2 and 267 of 0.
    expected = 2 - math.log(math.exp(2) + TOKENIZER.vocab_size - 1)
    config = GenerationConfig(top_k=1, temperature=0.1, repetition_penalty=1.5)
    events = told(Flat("ab"), config, top=2)
    assert [chr(token.token_id - 3) for token in tokens(events)] == ["a", "b"]
    for token in tokens(events):
        assert token.logprob == pytest.approx(expected)
        assert token.top[0] == (token.token_id, token.logprob)
        assert token.top[1][1] == pytest.approx(expected - 2)


def test_each_text_comes_behind_its_tokens_and_blanks_and_calls_have_none():
    call = Message.assistant("```python\ntool_call(a=1)\n```", metadata="f")
    events = told(
        ScriptedRuntime(["  x👋", SpecialToken.ASSISTANT, call, SpecialToken.ASSISTANT, " y"]),
        GenerationConfig(do_sample=False),
        top=0,
    )
    written = bytes(token.token_id - 3 for token in tokens(events)).decode()
    assert written == "x👋y"
    assert isinstance(events[-1], ReplyEnd)
    for position, event in enumerate(events):
        if isinstance(event, TextDelta):
            before = events[position - 1]
            assert isinstance(before, Logprobs)
            assert bytes(t.token_id - 3 for t in before.tokens).decode() == event.content


def test_a_token_that_a_constraint_forces_has_the_model_s_own_probability():
    config = GenerationConfig(do_sample=False, constraint=Choice(["forced"]))
    events = told(ScriptedRuntime("other"), config, top=0)
    assert "".join(event.content for event in events if isinstance(event, TextDelta)) == "forced"
    assert len(tokens(events)) == len("forced")
    assert all(token.logprob < -50 for token in tokens(events))
