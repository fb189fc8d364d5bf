from __future__ import annotations

import json
import logging

import pytest

from glm3sdk.domain.chat import CodeCell, FinishReason, Message, Role, Text, ToolSpec
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_functions import Tool, tool
from glm3sdk.errors import InvalidGenerationConfigError, InvalidMessageError, InvalidToolError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import Prefill, ScriptedRuntime

TOKENIZER = CharacterTokenizer()
ASK = [Message.user("天气?")]


def call(name: str, arguments: str) -> Message:
    return Message.assistant(f"```python\ntool_call({arguments})\n```", metadata=name)


WEATHER = [call("get_weather", "city='北京'"), SpecialToken.OBSERVATION]


def get_weather(city: str) -> str:
    """Look up the weather."""
    return f"{city}: 晴"


def run(*replies, tools=(get_weather,), history=ASK, **options):
    runtime = ScriptedRuntime(*replies)
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        return service.run_tools(history, list(tools), **options), runtime


def observations(reply) -> list[str]:
    return [each.content for each in reply.history if each.role is Role.OBSERVATION]


def test_a_call_is_answered_and_the_model_goes_on():
    reply, runtime = run(WEATHER, "北京今天晴")
    assert reply.content == "北京今天晴"
    assert reply.finish_reason is FinishReason.STOP
    assert reply.history == (
        *ASK,
        WEATHER[0],
        Message.observation("北京: 晴"),
        Message.assistant("北京今天晴"),
    )
    first, second = (each.input_ids for each in runtime.calls if isinstance(each, Prefill))
    assert '"name": "get_weather"' in TOKENIZER.decode(first)
    assert TOKENIZER.decode(second) == "\n北京: 晴"


def test_a_reply_without_calls_ends_at_once():
    reply, runtime = run("你好")
    assert reply.content == "你好"
    assert sum(isinstance(each, Prefill) for each in runtime.calls) == 1


def test_every_call_of_a_reply_gets_its_observation_behind_it():
    shanghai = call("get_weather", "city='上海'")
    together = [
        Message.assistant("看看"),
        SpecialToken.ASSISTANT,
        WEATHER[0],
        SpecialToken.ASSISTANT,
        shanghai,
    ]
    reply, _ = run(together, "都晴")
    assert reply.history == (
        *ASK,
        Message.assistant("看看"),
        WEATHER[0],
        Message.observation("北京: 晴"),
        shanghai,
        Message.observation("上海: 晴"),
        Message.assistant("都晴"),
    )


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ({"温度": 3}, '{"温度": 3}'),
        ([1, None, True], "[1, null, true]"),
        (2.5, "2.5"),
        (None, "null"),
        ("plain", "plain"),
        ({1}, "{1}"),
        ("half \ud800", "half ?"),
    ],
)
def test_a_result_is_text_or_json(result, seen):
    reply, _ = run(WEATHER, "ok", tools=[Tool(ToolSpec("get_weather"), lambda city: result)])
    assert observations(reply) == [seen]


def test_a_failing_tool_is_an_observation_and_a_warning_without_its_arguments(caplog):
    def get_weather(city: str) -> str:
        raise LookupError(f"no such place: {city}")

    with caplog.at_level(logging.WARNING, logger="glm3sdk"):
        reply, _ = run(WEATHER, "抱歉", tools=[get_weather])
    assert reply.content == "抱歉"
    assert observations(reply) == ['{"error": "LookupError: no such place: 北京"}']
    assert "LookupError" in caplog.text
    assert "北京" not in caplog.text


def test_arguments_that_do_not_fit_are_an_observation():
    reply, _ = run([call("get_weather", "town='北京'")], "ok")
    assert "TypeError" in observations(reply)[0]
    assert "town" in observations(reply)[0]


def test_an_unknown_name_is_answered_with_the_known_ones():
    reply, _ = run([call("get_wether", "city='北京'")], "ok")
    error = json.loads(observations(reply)[0])["error"]
    assert error == "no tool 'get_wether' (known: get_weather); did you mean 'get_weather'?"


def test_a_call_that_cannot_be_read_is_answered_with_the_reason():
    reply, _ = run([call("get_weather", "city=city")], "ok")
    error = json.loads(observations(reply)[0])["error"]
    assert error.startswith("the call of 'get_weather' cannot be read: not a literal")
    assert reply.content == "ok"


def test_an_interrupt_in_a_tool_is_not_swallowed():
    def get_weather(city: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(WEATHER, "ok", tools=[get_weather])


CODE = [Message.assistant("```python\nprint(1)\n```", metadata="interpreter")]


def test_code_without_an_interpreter_ends_the_loop():
    reply, _ = run(CODE, "never")
    assert reply.parts == (CodeCell("print(1)"),)
    assert reply.history == (*ASK, CODE[0])
    assert reply.finish_reason is FinishReason.TOOL_CALLS


def test_a_tool_named_interpreter_is_given_the_code():
    def interpreter(code: str) -> str:
        return f"ran {code}"

    reply, _ = run(CODE, "1", tools=[interpreter])
    assert observations(reply) == ["ran print(1)"]
    assert reply.content == "1"


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_loop_ends_after_the_rounds_with_the_call_unanswered(rounds):
    calls = []

    def get_weather(city: str) -> None:
        calls.append(city)

    reply, _ = run(WEATHER, tools=[get_weather], max_rounds=rounds)
    assert calls == ["北京"] * rounds
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert reply.history[-1] == WEATHER[0]
    assert len(observations(reply)) == rounds


def test_a_reply_cut_by_length_is_not_answered():
    config = GenerationConfig(do_sample=False, max_new_tokens=30)
    reply, _ = run(WEATHER, "never", config=config)
    assert reply.finish_reason is FinishReason.LENGTH
    assert observations(reply) == []


def test_a_history_of_dicts_with_earlier_calls_is_read():
    history = [
        {"role": "user", "content": "天气?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "function": {"name": "get_weather", "arguments": '{"city": "上海"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "雨"},
    ]
    reply, _ = run(WEATHER, "ok", history=history)
    assert observations(reply) == ["雨", "北京: 晴"]
    assert reply.parts == (Text("ok"),)


@pytest.mark.parametrize("rounds", [-1, 1.5, True])
def test_a_number_of_rounds_that_is_none_is_refused(rounds):
    with pytest.raises(InvalidGenerationConfigError, match="max_rounds"):
        run("ok", max_rounds=rounds)


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(InvalidToolError, match="two tools are named 'get_weather'"):
        run("ok", tools=[get_weather, tool(get_weather)])


def test_what_is_no_tool_is_refused():
    with pytest.raises(InvalidToolError, match="Tool"):
        run("ok", tools=["get_weather"])


def test_an_empty_history_is_refused():
    with pytest.raises(InvalidMessageError):
        run("ok", history=[])
