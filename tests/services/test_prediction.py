from __future__ import annotations

import itertools
import json

import attrs
import pytest

from glm3sdk.domain.chat import Message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import PromptTooLongError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.prediction import GREEDY, predict
from glm3sdk.testing import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import Prefill, ScriptedRuntime

TOKENIZER = CharacterTokenizer()
GMASK, SOP = map(TOKENIZER.special_id, (SpecialToken.GMASK, SpecialToken.SOP))
CALL = Message.assistant("```python\ntool_call(city='北京')\n```", metadata="get_weather")


def turn(question: str, answer: str = "") -> tuple[tuple[Message, ...], Message]:
    return (Message.user(question),), Message.assistant(answer)


@pytest.fixture
def runtime():
    return ScriptedRuntime("one", "two", "three", "four", "five")


@pytest.fixture
def service(runtime):
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1) as service:
        yield service


def test_predictions_come_in_the_order_of_the_records(service):
    records = [turn(f"question {n}", f"answer {n}") for n in range(5)]
    predictions = list(predict(service, records, batch_size=2))
    assert [each.text for each in predictions] == ["one", "two", "three", "four", "five"]
    assert [(each.prompt, each.expected) for each in predictions] == records
    assert {each.finish_reason for each in predictions} == {"stop"}


def test_a_source_is_read_without_roles(service, runtime):
    (prediction,) = predict(service, [("类型#裙", "好看的裙子")])
    prefill = next(call for call in runtime.calls if isinstance(call, Prefill))
    assert prefill.input_ids == (GMASK, SOP, *TOKENIZER.encode("类型#裙"))
    assert prediction.expected == Message.assistant("好看的裙子")
    assert prediction.written == (Message.assistant("\none"),)


def test_a_turn_follows_the_conversation_of_the_file(runtime, service):
    history = (
        Message.system("Use the tools:", tools=[{"name": "get_weather"}]),
        Message.user("北京天气"),
        Message.assistant("I should look."),
    )
    (prediction,) = predict(service, [(history, CALL)])
    prefill = next(call for call in runtime.calls if isinstance(call, Prefill))
    text = TOKENIZER.decode(prefill.input_ids)
    assert all(each in text for each in ("get_weather", "北京天气", "I should look."))
    assert prediction.written == (Message.assistant("one"),)


def test_chat_and_raw_records_may_be_mixed():
    runtime = ScriptedRuntime("same")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        records = [("source", "target"), turn("question"), ("other", "target")]
        predictions = list(predict(service, records))
    assert [each.prompt for each in predictions] == ["source", (Message.user("question"),), "other"]
    assert [each.written[0].content for each in predictions] == ["\nsame", "same", "\nsame"]


def test_a_call_after_a_thought_is_kept_but_is_not_its_text():
    runtime = ScriptedRuntime(["I should look.", SpecialToken.ASSISTANT, CALL])
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        (prediction,) = predict(service, [turn("北京天气")])
    assert prediction.text == "I should look."
    assert prediction.written == (Message.assistant("I should look."), CALL)


def test_a_call_has_no_text():
    with Glm3Service(runtime=ScriptedRuntime(CALL), tokenizer=TOKENIZER) as service:
        (prediction,) = predict(service, [turn("北京天气")])
    assert prediction.text == ""
    assert prediction.written == (CALL,)


def test_by_default_the_likeliest_tokens_are_taken_and_a_reply_has_an_end():
    assert GREEDY.greedy
    with Glm3Service(runtime=ScriptedRuntime("a" * 600), tokenizer=TOKENIZER) as service:
        (prediction,) = predict(service, [turn("question")])
    assert prediction.finish_reason == "length"
    assert prediction.text == "a" * 511  # and the line break before it


def test_progress_tells_how_many_records_are_done(service):
    done: list[int] = []
    records = [turn(f"question {n}") for n in range(5)]
    assert len(list(predict(service, records, batch_size=2, progress=done.append))) == 5
    assert done == [2, 4, 5]


def test_records_are_read_a_batch_at_a_time(service):
    endless = (turn(f"question {n}") for n in itertools.count())
    predictions = predict(service, endless, batch_size=2)
    assert [next(predictions).text for _ in range(3)] == ["one", "two", "three"]
    assert next(endless)[0] == (Message.user("question 4"),)


def test_a_prompt_without_room_is_named_by_its_batch(service):
    records = [turn("a"), turn("b"), turn("c"), turn("d" * 9000)]
    predictions = predict(service, records, batch_size=2)
    assert [next(predictions).text for _ in range(2)] == ["one", "two"]
    with pytest.raises(PromptTooLongError, match="in records 3 to 4: the prompt has"):
        next(predictions)


def test_no_records_give_no_predictions(service):
    assert list(predict(service, [])) == []


def test_a_prediction_is_json_with_calls_as_the_model_writes_them():
    tools = ({"name": "get_weather"},)
    history = (Message.system("Use the tools:", tools=tools), Message.user("北京天气"))
    reply = ["I should look.", SpecialToken.ASSISTANT, CALL]
    with Glm3Service(runtime=ScriptedRuntime(reply), tokenizer=TOKENIZER) as service:
        (prediction,) = predict(service, [(history, CALL)])
    called = "get_weather\n```python\ntool_call(city='北京')\n```"
    assert json.loads(json.dumps(prediction.to_json())) == {
        "prompt": [
            {"role": "system", "content": "Use the tools:", "tools": [{"name": "get_weather"}]},
            {"role": "user", "content": "北京天气"},
        ],
        "reference": called,
        "prediction": f"I should look.\n{called}",
        "finish_reason": "tool_calls",
    }


def test_a_prediction_of_a_source_has_it_as_its_prompt(service):
    (prediction,) = predict(service, [("类型#裙", "好看的裙子")])
    assert prediction.to_json() == {
        "prompt": "类型#裙",
        "reference": "好看的裙子",
        "prediction": "\none",
        "finish_reason": "stop",
    }


def test_each_record_may_have_parameters_of_its_own(service):
    short = attrs.evolve(GREEDY, max_new_tokens=2)
    records = [turn("first"), turn("second"), ("third", ""), turn("fourth")]
    choose = {records[1]: short, records[3]: short}
    predictions = predict(service, records, config=lambda record: choose.get(record, GREEDY))
    assert [each.finish_reason for each in predictions] == ["stop", "length", "stop", "length"]
