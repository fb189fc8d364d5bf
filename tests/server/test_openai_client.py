"""The official client of OpenAI's API, unchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from threading import Thread

import openai
import pytest
from server.serving import HI, TOKENIZER, WEATHER, Served, call, scripted, served
from services.echo_runtime import EchoRuntime

from glm3sdk.domain.chat import Message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import Prefill

OBSERVATION = SpecialToken.OBSERVATION


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with served(scripted("ok"), max_queue=4) as server:
        yield server


def create(client: openai.OpenAI, **options):
    return client.chat.completions.create(**{"model": "glm3", "messages": HI, **options})


def joined(stream, index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in stream
        for choice in chunk.choices
        if choice.index == index
    )


def last_read(service: Glm3Service) -> tuple[int, ...]:
    return [each for each in service.runtime.calls if isinstance(each, Prefill)][-1].input_ids


def test_a_chat_is_answered_with_its_token_counts():
    with served(scripted("你好👋")) as server:
        answer = create(server.client, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "你好👋")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (answer.object, answer.model) == ("chat.completion", "glm3")
    # [gMASK] sop <|user|> "\n" h i <|assistant|>, and "\n" with ten bytes and </s>.
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 12, 19)


def test_a_stream_gives_the_same_text_piece_by_piece():
    with served(scripted("你好👋 there")) as server:
        chunks = list(create(server.client, stream=True))
    assert joined(chunks) == "你好👋 there"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_its_token_counts_last_where_they_are_asked_for():
    with served(scripted("ok")) as server:
        chunks = list(create(server.client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_next_turn_of_a_conversation_reads_only_what_is_new():
    service = Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER, slots=2)
    with served(service) as server:
        first = create(server.client, temperature=0)
        answer = create(
            server.client,
            temperature=0,
            messages=[
                *HI,
                {"role": "assistant", "content": first.choices[0].message.content},
                {"role": "user", "content": "and you?"},
            ],
        )
    assert answer.choices[0].message.content == "and you?"
    assert answer.usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens - 1


def test_a_tool_call_comes_with_json_arguments_and_its_answer_is_read():
    service = scripted([call("get_weather", "city='北京', days=3"), OBSERVATION], "晴")
    with served(service) as server:
        answer = create(server.client, tools=[WEATHER])
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (asked,) = choice.message.tool_calls
        assert asked.type == "function"
        assert asked.function.name == "get_weather"
        assert json.loads(asked.function.arguments) == {"city": "北京", "days": 3}
        told = {"role": "tool", "tool_call_id": asked.id, "content": "22 度"}
        final = create(server.client, tools=[WEATHER], messages=[*HI, choice.message, told])
    assert final.choices[0].message.content == "晴"
    assert TOKENIZER.decode(last_read(service)).endswith("\n22 度")


def test_a_streamed_tool_call_grows_argument_by_argument():
    service = scripted(
        ["Let me see.", SpecialToken.ASSISTANT, call("get_weather", "city='北京', days=3")]
    )
    with served(service) as server:
        chunks = list(create(server.client, tools=[WEATHER], stream=True))
    deltas = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or ()]
    assert joined(chunks) == "Let me see."
    assert {delta.index for delta in deltas} == {0}
    assert [delta.function.name for delta in deltas] == ["get_weather", None, None]
    assert deltas[0].id.startswith("call_")
    assert [delta.function.arguments for delta in deltas] == ["", '{"city": "北京"', ', "days": 3}']
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_client_s_own_helper_gathers_a_streamed_call():
    service = scripted(call("get_weather", "city='上海'"))
    with (
        served(service) as server,
        server.client.chat.completions.stream(model="glm3", messages=HI, tools=[WEATHER]) as stream,
    ):
        final = stream.get_final_completion()
    (asked,) = final.choices[0].message.tool_calls
    assert json.loads(asked.function.arguments) == {"city": "上海"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_cannot_be_read_comes_as_it_was_written_and_goes_back_so(stream: bool):
    written = "```python\ntool_call(city=city)\n```"
    service = scripted(call("get_weather", "city=city"), "sorry")
    with served(service) as server:
        if stream:
            chunks = list(create(server.client, tools=[WEATHER], stream=True))
            deltas = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or ()]
            name, arguments = (
                deltas[0].function.name,
                "".join(delta.function.arguments for delta in deltas),
            )
            reason = chunks[-1].choices[0].finish_reason
        else:
            (choice,) = create(server.client, tools=[WEATHER]).choices
            function = choice.message.tool_calls[0].function
            name, arguments, reason = function.name, function.arguments, choice.finish_reason
        assert (name, arguments, reason) == ("get_weather", written, "tool_calls")
        asked = {
            "id": "call_1",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        create(
            server.client,
            tools=[WEATHER],
            messages=[
                *HI,
                {"role": "assistant", "content": None, "tool_calls": [asked]},
                {"role": "tool", "tool_call_id": "call_1", "content": "no city"},
            ],
        )
    # The model's own tokens are all still there: only what follows them is read.
    assert TOKENIZER.decode(last_read(service)) == "\nno city"


def test_code_for_the_interpreter_is_a_call_with_one_argument_and_goes_back_as_code():
    cell = "```python\nprint('你好')\n```"
    service = scripted(Message.assistant(cell, metadata="interpreter"), "done")
    with served(service) as server:
        chunks = list(create(server.client, stream=True))
        deltas = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or ()]
        arguments = "".join(delta.function.arguments for delta in deltas)
        assert json.loads(arguments) == {"code": "print('你好')"}
        asked = {
            "id": "a",
            "type": "function",
            "function": {"name": "interpreter", "arguments": arguments},
        }
        create(server.client, messages=[*HI, {"role": "assistant", "tool_calls": [asked]}])
    assert last_read(service) == (TOKENIZER.special_id(SpecialToken.ASSISTANT),)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_can_be_required(choice: object):
    schema = {"properties": {"city": {"enum": ["上海"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    with served(scripted("I would rather not")) as server:
        answer = create(server.client, tools=[tool], tool_choice=choice, temperature=0)
    (asked,) = answer.choices[0].message.tool_calls
    assert json.loads(asked.function.arguments) == {"city": "上海"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_no_call_can_be_asked_for():
    with served(scripted(call("get_weather", "city='北京'"))) as server:
        answer = create(server.client, tools=[WEATHER], tool_choice="none", max_tokens=50)
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ({"type": "text"}, ["so be it"]),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}},
            },
            ['"yes"', '"no"'],
        ),
    ],
)
def test_a_reply_keeps_to_its_response_format(wanted: object, allowed: list[str]):
    with served(scripted("so be it")) as server:
        answer = create(server.client, response_format=wanted, temperature=0)
    assert answer.choices[0].message.content in allowed


def test_several_choices_come_with_their_indices():
    with served(scripted("one", "two", "three")) as server:
        answer = create(server.client, n=3, seed=7)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert sorted(choice.message.content for choice in answer.choices) == [
            "one",
            "three",
            "two",
        ]
        assert answer.usage.prompt_tokens == 7
        assert answer.usage.completion_tokens == sum(len(t) + 2 for t in ("one", "two", "three"))
        chunks = list(create(server.client, n=3, stream=True))
    assert sorted(joined(chunks, index) for index in range(3)) == ["one", "three", "two"]


def test_a_stop_string_and_a_limit_end_a_reply():
    with served(scripted("one two three")) as server:
        stopped = create(server.client, stop=[" two"]).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == ("one", "stop")
        cut = create(server.client, max_completion_tokens=4).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("one", "length")


def test_log_probabilities_are_those_of_the_text():
    with served(scripted("hi👋")) as server:
        choice = create(server.client, logprobs=True, top_logprobs=3).choices[0]
        tokens = choice.logprobs.content
        assert b"".join(bytes(token.bytes) for token in tokens).decode() == "hi👋"
        for token in tokens:
            assert len(token.top_logprobs) == 3
            best = token.top_logprobs[0]
            assert (best.token, best.bytes, best.logprob) == (
                token.token,
                token.bytes,
                token.logprob,
            )
            assert sum(math.exp(each.logprob) for each in token.top_logprobs) <= 1 + 1e-9
        chunks = list(create(server.client, logprobs=True, stream=True))
    streamed = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert b"".join(bytes(token.bytes) for token in streamed).decode() == "hi👋"


def test_raw_completions_continue_each_prompt():
    with served(scripted("abc", "def")) as server:
        answer = server.client.completions.create(model="glm3", prompt=["x", "y"], logprobs=1)
        assert sorted(choice.text.strip() for choice in answer.choices) == ["abc", "def"]
        assert [choice.index for choice in answer.choices] == [0, 1]
        for choice in answer.choices:
            assert "".join(choice.logprobs.tokens) == choice.text
            assert choice.logprobs.text_offset == list(range(len(choice.text)))
        chunks = list(server.client.completions.create(model="glm3", prompt="x", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks).strip() == "abc"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_model_is_listed():
    with served(scripted("ok"), model_name="org/glm3") as server:
        assert [model.id for model in server.client.models.list()] == ["org/glm3"]
        assert server.client.models.retrieve("org/glm3").owned_by == "glm3sdk"
        with pytest.raises(openai.NotFoundError):
            server.client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "response_format",
        ),
    ],
)
def test_a_mistake_is_a_bad_request_that_names_the_parameter(plain: Served, options, param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        create(plain.client, **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert caught.value.code
    assert create(plain.client).choices[0].message.content == "ok"


def test_an_unknown_model_is_not_found():
    with served(scripted("ok")) as server, pytest.raises(openai.NotFoundError) as caught:
        create(server.client, model="gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_harmless_parameters_are_ignored():
    with served(scripted("ok")) as server:
        answer = create(
            server.client,
            user="me",
            store=False,
            metadata={"a": "b"},
            presence_penalty=0,
            logit_bias={},
            parallel_tool_calls=True,
            extra_body={"never_heard_of": {"it": 1}},
        )
    assert answer.choices[0].message.content == "ok"


def test_a_model_that_fails_is_a_server_error_and_in_a_stream_its_last_event():
    with served(Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER)) as server:
        asked = [{"role": "user", "content": "nan"}]
        with pytest.raises(openai.InternalServerError, match="nan for token"):
            create(server.client, messages=asked)
        with pytest.raises(openai.APIError, match="nan for token"):
            list(create(server.client, messages=asked, stream=True))
        assert create(server.client).choices[0].message.content == "hi"


def test_clients_share_the_decode_batch():
    runtime = EchoRuntime()
    answers: dict[int, str] = {}
    with served(Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=8)) as server:

        def ask(n: int) -> None:
            message = {"role": "user", "content": f"number {n} " + "x" * 50}
            answer = create(server.client, messages=[message], temperature=0)
            answers[n] = answer.choices[0].message.content

        runtime.hold()
        threads = [Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        runtime.sessions[0].decoding.wait(30)
        runtime.go_on()
        for thread in threads:
            thread.join(timeout=60)
    assert answers == {n: f"number {n} " + "x" * 50 for n in range(16)}
    assert max(map(len, runtime.batches)) == 8


def test_what_was_done_is_counted():
    with served(scripted("ok")) as server:
        create(server.client)
        list(create(server.client, stream=True))
        with pytest.raises(openai.BadRequestError):
            create(server.client, n=0)
        assert server.metric('glm3_tokens_total{kind="prompt"}') == 14
        assert server.metric('glm3_tokens_total{kind="completion"}') == 8
        assert server.metric('glm3_tokens_total{kind="cached"}') == 6
        counted = 'glm3_requests_total{endpoint="chat.completions",status="%d"}'
        assert (server.metric(counted % 200), server.metric(counted % 400)) == (2, 1)
        assert server.metric('glm3_request_seconds_count{endpoint="chat.completions"}') == 3
        assert server.metric('glm3_first_token_seconds_count{endpoint="chat.completions"}') == 2
        assert server.metric("glm3_slots") == 2
