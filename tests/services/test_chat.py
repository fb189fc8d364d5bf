from __future__ import annotations

import gc
import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.echo_runtime import TOKENIZER, EchoRuntime, close_while_it_decodes

from glm3sdk.domain.chat import (
    CompletionEnd,
    FinishReason,
    Message,
    ReplyEnd,
    Text,
    ToolCall,
    ToolCallEnd,
    ToolSpec,
)
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import (
    InvalidGenerationConfigError,
    InvalidMessageError,
    InvalidTokenizerError,
    InvalidToolError,
    NonFiniteLogitsError,
    PromptTooLongError,
    RuntimeFailureError,
    ServiceClosedError,
    SlotError,
)
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import Prefill, ScriptedRuntime

HI = [Message.user("hi")]
ASSISTANT, OBSERVATION = SpecialToken.ASSISTANT, SpecialToken.OBSERVATION
GREEDY = GenerationConfig(do_sample=False)
CALL = Message.assistant("```python\ntool_call(city='北京')\n```", metadata="get_weather")


def service_of(*replies, **options) -> Glm3Service:
    return Glm3Service(runtime=ScriptedRuntime(*replies), tokenizer=TOKENIZER, **options)


@pytest.fixture
def echo():
    runtime = EchoRuntime()
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=2) as service:
        yield service
        runtime.go_on()


def test_a_reply_has_content_reason_usage_and_history():
    with service_of("你好！") as service:
        reply = service.chat(HI)
    assert reply.content == "你好！"
    assert reply.finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 11)
    assert reply.history == (Message.user("hi"), Message.assistant("你好！"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.integers(0, 40))
def test_streamed_content_equals_the_reply(text, limit):
    config = GenerationConfig(do_sample=False, max_new_tokens=limit or None, stop=("a", "\n\n"))
    with service_of(text) as service:
        *events, end = service.stream_chat(HI, config)
    assert isinstance(end, ReplyEnd)
    assert "".join(event.content for event in events) == end.reply.content
    with service_of(text) as service:
        assert service.chat(HI, config) == end.reply


def test_a_history_of_dicts_is_read():
    with service_of("ok") as service:
        reply = service.chat([{"role": "user", "content": "hi"}])
    assert reply.history == (Message.user("hi"), Message.assistant("ok"))


@pytest.mark.parametrize(
    "last", [Message.system("s"), Message.observation("o"), Message.assistant("a")]
)
def test_a_history_may_end_with_any_role(last):
    with service_of("ok") as service:
        assert service.chat([*HI, last]).content == "ok"


def test_turn_two_prefills_only_what_is_new():
    runtime = ScriptedRuntime("你好", "再见")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        first = service.chat(HI)
        second = service.chat([*first.history, Message.user("b")])
    new = [call.input_ids for call in runtime.calls if isinstance(call, Prefill)][1]
    user, assistant = map(TOKENIZER.special_id, (SpecialToken.USER, ASSISTANT))
    assert new == (user, 13, 101, assistant)
    assert second.usage.cached_tokens == second.usage.prompt_tokens - 4


def test_several_turns_of_one_reply_are_several_messages_and_all_reused():
    runtime = ScriptedRuntime([Message.assistant("先查"), ASSISTANT, CALL, OBSERVATION], "晴")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        reply = service.chat(HI)
        assert reply.parts == (Text("先查"), ToolCall("get_weather", {"city": "北京"}))
        assert reply.finish_reason is FinishReason.TOOL_CALLS
        assert reply.history == (*HI, Message.assistant("先查"), CALL)
        after = service.chat([*reply.history, Message.observation("晴")])
    new = [call.input_ids for call in runtime.calls if isinstance(call, Prefill)][1]
    assert new[0] == TOKENIZER.special_id(OBSERVATION)
    assert after.usage.cached_tokens == after.usage.prompt_tokens - len(new)


def test_an_edited_reply_is_read_again_from_its_text():
    runtime = ScriptedRuntime("abc", "ok")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        first = service.chat(HI)
        edited = attrs.evolve(first.history[-1], content="aXc")
        service.chat([*HI, edited, Message.user("b")])
    new = [call.input_ids for call in runtime.calls if isinstance(call, Prefill)][1]
    assert TOKENIZER.decode(new) == "Xc\nb"


def test_stop_strings_end_the_reply_and_are_not_part_of_it(echo):
    config = GenerationConfig(do_sample=False, stop=("lo w",))
    *events, end = echo.stream_chat([Message.user("hello world, hello moon")], config)
    reply = end.reply
    assert "".join(event.content for event in events) == reply.content == "hel"
    assert reply.finish_reason is FinishReason.STOP
    assert reply.usage.completion_tokens == len("\nhello w")
    assert reply.history[-1] == Message.assistant("hel")
    assert reply.history[-1].tokens is None
    assert echo.chat([Message.user("next")]).content == "next"


def test_a_stop_string_does_not_reach_across_turns():
    with service_of(["ab", ASSISTANT, "cd"]) as service:
        reply = service.chat(HI, GenerationConfig(do_sample=False, stop=("b\nc", "bc")))
    assert reply.parts == (Text("ab"), Text("cd"))


@pytest.mark.parametrize("limit", [{"max_new_tokens": 4}, {"max_length": 12}])
def test_length_keeps_the_last_real_token(limit):
    with service_of("abcdef", "ab") as service:
        config = GenerationConfig(do_sample=False, **limit)
        reply = service.chat([Message.user("123")], config)
        assert (reply.content, reply.finish_reason) == ("abc", FinishReason.LENGTH)
        assert reply.usage.completion_tokens == 4
        reply = service.chat([Message.user("123")], config)
        assert (reply.content, reply.finish_reason) == ("ab", FinishReason.STOP)


def test_the_slot_is_filled_to_its_end():
    with service_of("abcdef", max_seq_length=12) as service:
        reply = service.chat(HI)
    assert (reply.content, reply.finish_reason) == ("abcd", FinishReason.LENGTH)
    assert reply.usage.total_tokens == 12


def test_length_counts_for_more_than_tool_calls():
    with service_of(CALL) as service:
        reply = service.chat(HI, GenerationConfig(do_sample=False, max_new_tokens=20))
    assert reply.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "end", [2, SpecialToken.USER, OBSERVATION], ids=["eos", "user", "observation"]
)
def test_each_stop_id_ends_the_reply(end):
    with service_of(["hi", end, "never"]) as service:
        assert service.chat(HI).content == "hi"


def test_further_stop_ids_can_be_named():
    with service_of("abcd") as service:
        reply = service.chat(HI, GenerationConfig(stop_token_ids=TOKENIZER.encode("c")))
    assert reply.content == "ab"


def test_stop_ids_wait_for_min_new_tokens():
    with service_of("ab") as service:
        config = GenerationConfig(do_sample=False, min_new_tokens=6, max_new_tokens=6)
        reply = service.chat(HI, config)
    assert reply.finish_reason is FinishReason.LENGTH
    assert reply.usage.completion_tokens == 6


def test_other_special_tokens_give_no_text():
    with service_of(["ab", SpecialToken.EOP, SpecialToken.SYSTEM]) as service:
        assert service.chat(HI).content == "ab"


def test_tools_are_offered_and_stay_out_of_the_history():
    runtime = ScriptedRuntime([CALL, OBSERVATION])
    tool = ToolSpec("get_weather", "weather")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        *_, end, last = service.stream_chat(HI, None, [tool])
    prompt = TOKENIZER.decode(runtime.calls[1].input_ids)
    assert json.dumps([tool.to_json()], indent=4) in prompt
    assert end == ToolCallEnd(0, ToolCall("get_weather", {"city": "北京"}))
    assert last.reply.history == (*HI, CALL)


@pytest.mark.parametrize("tools", [5, "get_weather", [{"description": "nameless"}]])
def test_tools_that_are_none_are_refused(echo, tools):
    with pytest.raises(InvalidToolError):
        echo.chat(HI, None, tools)


def test_a_batch_larger_than_the_slots_answers_as_one_by_one(echo):
    histories = [[Message.user(f"text {n}" * (1 + n % 3))] for n in range(9)]
    together = echo.chat_batch(histories, GREEDY)
    alone = [echo.chat(history, GREEDY) for history in histories]
    assert [reply.content for reply in together] == [reply.content for reply in alone]
    assert [reply.history for reply in together] == [reply.history for reply in alone]
    assert echo.chat_batch([]) == []


def test_an_invalid_history_stops_a_batch_before_it_starts(echo):
    with pytest.raises(InvalidMessageError):
        echo.chat_batch([HI, []])
    assert echo.runtime.prefills == []


def test_a_failure_in_a_batch_gives_up_the_others(echo):
    echo.runtime.hold(after=3)
    with pytest.raises(NonFiniteLogitsError):
        echo.chat_batch([[Message.user("nan")], [Message.user("x" * 100)]], GREEDY)
    echo.runtime.go_on()
    assert echo.chat(HI, GREEDY).content == "hi"
    assert len(echo.runtime.batches) < 10


@pytest.mark.parametrize("failure", [RuntimeFailureError("boom"), ValueError("boom")])
def test_a_failing_request_leaves_the_service_usable(echo, failure):
    echo.runtime.fail_decode = failure
    with pytest.raises(RuntimeFailureError, match="boom"):
        echo.chat(HI)
    assert echo.chat(HI, GREEDY).content == "hi"


@pytest.mark.parametrize(
    ("history", "config", "error", "text"),
    [
        ([], None, InvalidMessageError, "empty"),
        ([{"role": "wizard", "content": ""}], None, InvalidMessageError, "wizard"),
        ([{"role": "user", "content": 5}], None, InvalidMessageError, "5"),
        (HI, {"top_p": 1}, InvalidGenerationConfigError, "top_p"),
        (HI, GenerationConfig(max_length=7), PromptTooLongError, "7 tokens.*limit.*is 7"),
        ([Message.user("x" * 600)], None, PromptTooLongError, "605 tokens.*is 512"),
        (HI, GenerationConfig(logit_bias={9999: 1.0}), InvalidGenerationConfigError, "9999"),
    ],
)
def test_bad_input_is_refused_at_the_call_of_stream_chat(echo, history, config, error, text):
    with pytest.raises(error, match=text):
        echo.stream_chat(history, config)
    with pytest.raises(error, match=text):
        echo.chat(history, config)
    assert echo.chat(HI, GREEDY).content == "hi"


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_left_gives_its_slot_free(way):
    runtime = EchoRuntime()
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1) as service:
        runtime.hold(after=3)
        stream = service.stream_chat([Message.user("x" * 200)], GREEDY)
        assert next(stream).content == "x"
        if way == "close":
            stream.close()
        del stream
        gc.collect()
        runtime.go_on()
        assert service.chat(HI, GREEDY).content == "hi"
    assert len(runtime.batches) < 10


def test_a_stream_that_is_never_read_costs_nothing(echo):
    echo.stream_chat(HI)
    assert echo.chat(HI, GREEDY).content == "hi"
    assert len(echo.runtime.prefills) == 1


def test_a_slow_reader_does_not_hold_up_others(echo):
    slow = echo.stream_chat([Message.user("slow reader")], GREEDY)
    assert next(slow).content == "s"
    for n in range(5):
        assert echo.chat([Message.user(f"quick {n}")], GREEDY).content == f"quick {n}"
    assert "".join(event.content for event in slow) == "low reader"


def test_a_stream_keeps_its_service_alive():
    service = service_of("hello")
    stream = service.stream_chat(HI)
    del service
    gc.collect()
    assert "".join(event.content for event in stream) == "hello"


def test_plain_text_is_continued_after_the_prefix():
    runtime = ScriptedRuntime("def")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        completion = service.generate("abc", GREEDY)
    prefix = [TOKENIZER.special_id(SpecialToken.GMASK), TOKENIZER.special_id(SpecialToken.SOP)]
    assert list(runtime.calls[1].input_ids) == prefix + TOKENIZER.encode("abc")
    assert completion.text == "\ndef"
    assert completion.finish_reason == "stop"
    assert completion.usage.prompt_tokens == 5


def test_a_ready_made_prompt_is_the_chat_that_it_describes():
    runtime = ScriptedRuntime("ok")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        service.generate("[gMASK]sop<|user|>\nhi<|assistant|>")
        service.chat(HI)
    ready_made, chat = (call for call in runtime.calls if isinstance(call, Prefill))
    # The chat finds all but its last token in the slot.
    assert ready_made.input_ids[-1:] == chat.input_ids
    assert len(ready_made.input_ids) == 7


def test_a_streamed_completion_equals_the_whole():
    config = GenerationConfig(do_sample=False, stop=("。",))
    with service_of("你好👋。再见") as service:
        *events, end = service.stream_generate("a", config)
        assert isinstance(end, CompletionEnd)
        assert "".join(event.content for event in events) == end.completion.text == "\n你好👋"
        assert service.generate("a", config).text == end.completion.text
        texts = [each.text for each in service.generate_batch(["a", "b", "c"], config)]
    assert texts == [end.completion.text] * 3


def test_a_completion_keeps_the_space_after_its_prompt(shared_data):
    from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")
    ids = tokenizer.encode("The cat sat on the mat")
    prompt = "The cat"
    continuation = ids[len(tokenizer.encode(prompt)) :]
    runtime = ScriptedRuntime(continuation, tokenizer=tokenizer)
    with Glm3Service(runtime=runtime, tokenizer=tokenizer) as service:
        assert service.generate(prompt, GREEDY).text == " sat on the mat"


@pytest.mark.parametrize("prompt", [5, None, "\ud800"])
def test_a_prompt_that_is_not_text_is_refused(echo, prompt):
    with pytest.raises(InvalidMessageError):
        echo.generate(prompt)


def test_a_banned_word_does_not_appear():
    with service_of("abc") as service:
        reply = service.chat(HI, GenerationConfig(do_sample=False, bad_words="b", max_new_tokens=9))
    assert "a" in reply.content
    assert "b" not in reply.content


def test_a_seed_reproduces_and_none_differs():
    runtime = EchoRuntime()
    runtime.start_decode = noise_after(runtime.start_decode)
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        config = GenerationConfig(seed=3, max_new_tokens=30, temperature=5.0)
        assert service.chat(HI, config).parts == service.chat(HI, config).parts
        free = attrs.evolve(config, seed=None)
        assert service.chat(HI, free).parts != service.chat(HI, free).parts


def noise_after(start_decode):
    def start(**options):
        session = start_decode(**options)
        logits = session._logits
        session._logits = lambda ids: logits(ids) * 0
        return session

    return start


def test_a_closed_service_refuses():
    service = service_of("hi")
    running = service.stream_chat(HI)
    next(running)
    service.close()
    service.close()
    for call in (service.chat, service.stream_chat, lambda _: service.generate("a")):
        with pytest.raises(ServiceClosedError):
            call(HI)


def test_closing_ends_a_running_stream():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER)
    runtime.hold(after=3)
    stream = service.stream_chat([Message.user("hello world")], GREEDY)
    assert next(stream).content == "h"
    close_while_it_decodes(runtime, service._scheduler)
    with pytest.raises(ServiceClosedError):
        list(stream)


@pytest.mark.parametrize("owns", [False, True])
def test_close_closes_the_runtime_only_where_the_service_owns_it(owns):
    runtime = EchoRuntime()
    Glm3Service(runtime=runtime, tokenizer=TOKENIZER, owns_runtime=owns).close()
    assert runtime.closed is owns
    assert runtime.sessions[0].closed


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    small = attrs.evolve(Glm3Config.preset("tiny"), padded_vocab_size=100)
    runtime = EchoRuntime()
    runtime.config = small
    with pytest.raises(InvalidTokenizerError, match=r"268.*100"):
        Glm3Service(runtime=runtime, tokenizer=TOKENIZER)


def test_the_slot_count_is_checked_when_the_service_is_made():
    with pytest.raises(SlotError):
        service_of("hi", slots=0)


def test_two_services_over_one_runtime_do_not_mix(echo):
    with Glm3Service(runtime=echo.runtime, tokenizer=TOKENIZER) as other:
        mine, theirs = echo.stream_chat(HI, GREEDY), other.stream_chat([Message.user("yo")], GREEDY)
        events = [event for pair in zip(mine, theirs, strict=True) for event in pair]
    assert "".join(event.content for event in events) == "hyio"
