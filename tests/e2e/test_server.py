"""OpenAI's client against the bundled model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import openai
import pytest

from glm3sdk import GenerationConfig, Glm3Service, Message
from glm3sdk.server import Listener, create_app

QUESTIONS = ("你好", "请介绍一下华为", "晚上睡不着应该怎么办", "写一个快排算法")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询城市的天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def client(tiny: Glm3Service) -> Iterator[openai.OpenAI]:
    with (
        Listener(create_app(tiny, model_name="tiny"), port=0) as listener,
        openai.OpenAI(base_url=f"{listener.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_clients_at_once_get_what_the_sdk_says(client: openai.OpenAI, tiny: Glm3Service):
    greedy = GenerationConfig(do_sample=False)
    alone = [tiny.chat([Message.user(question)], greedy) for question in QUESTIONS]

    async def ask() -> list:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as many:
            return await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model="tiny",
                        temperature=0,
                        messages=[{"role": "user", "content": question}],
                    )
                    for question in QUESTIONS * 4
                )
            )

    for answer, expected in zip(asyncio.run(ask()), alone * 4, strict=True):
        assert answer.choices[0].message.content == expected.content
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage.completion_tokens == expected.usage.completion_tokens


def test_a_streamed_call_is_answered(client: openai.OpenAI):
    messages = [{"role": "user", "content": "北京的天气怎么样？"}]
    options = {"model": "tiny", "tools": [WEATHER], "temperature": 0}
    with client.chat.completions.stream(messages=messages, **options) as stream:
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "北京"}
    observation = '{"temperature": 22, "condition": "晴"}'
    messages += [
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": observation},
    ]
    final = client.chat.completions.create(messages=messages, **options)
    assert "22" in final.choices[0].message.content
    assert final.usage.prompt_tokens_details.cached_tokens > 0


def test_a_reply_keeps_to_a_schema_and_its_log_probabilities_are_its_text(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "level": {"enum": [1, 2, 3]}},
        "required": ["sure", "level"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "你好"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        },
        temperature=0,
        logprobs=True,
    )
    (choice,) = answer.choices
    value = json.loads(choice.message.content)
    assert isinstance(value["sure"], bool)
    assert value["level"] in (1, 2, 3)
    written = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode()
    # The first piece brings the space before it, which no text begins with.
    assert written.removeprefix(" ") == choice.message.content
