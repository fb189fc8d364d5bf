from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from cli.scripted import TOKENIZER, call

from glm3sdk.cli.conversation import Conversation
from glm3sdk.domain.chat import Message, Reply, ReplyEnd, Role, Text, TextDelta, ToolSpec
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import PromptTooLongError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

CTRL_C, CTRL_D = KeyboardInterrupt(), EOFError()
WEATHER = [call("get_weather", "city='北京'"), SpecialToken.OBSERVATION]


def typing(*lines: str | BaseException) -> tuple[Callable[[str], str], list[str]]:
    """A person who types these lines, and the prompts that they were shown."""
    coming, prompts = iter(lines), []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        line = next(coming)
        if isinstance(line, BaseException):
            raise line
        return line

    return ask, prompts


def converse(
    *lines: str | BaseException, replies: Iterable = ("一", "二"), first=None, tools=None
) -> tuple[tuple[Message, ...], list[str]]:
    ask, prompts = typing(*lines)
    with Glm3Service(runtime=ScriptedRuntime(*replies), tokenizer=TOKENIZER) as service:
        conversation = Conversation(
            answer=lambda asked, tools: service.stream_chat(asked, None, tools),
            ask=ask,
            tools=tuple(tools or ()),
        )
        conversation.run(first)
    return conversation.history, prompts


def interrupted_after(*texts: str) -> Conversation:
    """A conversation whose first answer is stopped by Ctrl-C after these texts."""

    def answer(asked, tools):
        if len(asked) > 1:
            yield TextDelta("二")
            yield ReplyEnd(Reply((Text("二"),), history=(*asked, Message.assistant("二"))))
        for text in texts:
            yield TextDelta(text)
        raise KeyboardInterrupt

    ask, _ = typing("甲", CTRL_D)
    return Conversation(answer=answer, ask=ask)


def test_turns_follow_each_other_until_the_end_of_input(capsys: pytest.CaptureFixture[str]):
    history, prompts = converse("甲", "乙", CTRL_D)
    assert [(each.role, each.content) for each in history] == [
        (Role.USER, "甲"),
        (Role.ASSISTANT, "一"),
        (Role.USER, "乙"),
        (Role.ASSISTANT, "二"),
    ]
    assert prompts == ["> "] * 3
    assert capsys.readouterr().out == "一\n二\n"


def test_the_first_message_comes_before_the_first_prompt():
    history, prompts = converse("/quit", first="甲")
    assert [each.content for each in history] == ["甲", "一"]
    assert prompts == ["> "]


def test_an_empty_line_is_no_message():
    history, prompts = converse("", "  ", "/quit")
    assert history == ()
    assert len(prompts) == 3


def test_the_first_ctrl_c_at_the_prompt_is_answered_with_a_hint(
    capsys: pytest.CaptureFixture[str],
):
    history, _ = converse(CTRL_C, "甲", CTRL_C, CTRL_D)
    assert [each.content for each in history] == ["甲", "一"]
    assert capsys.readouterr().err.count("Ctrl-C again") == 2


def test_the_second_ctrl_c_at_the_prompt_ends():
    with pytest.raises(KeyboardInterrupt):
        converse(CTRL_C, CTRL_C)


def test_an_empty_line_makes_the_next_ctrl_c_the_first_one_again():
    history, prompts = converse(CTRL_C, "", CTRL_C, CTRL_D)
    assert history == ()
    assert len(prompts) == 4


def test_what_was_said_before_ctrl_c_stays_in_the_history(capsys: pytest.CaptureFixture[str]):
    conversation = interrupted_after("我是", "助")
    conversation.run()
    assert conversation.history == (Message.user("甲"), Message.assistant("我是助"))
    captured = capsys.readouterr()
    assert captured.out == "我是助\n"
    assert "(stopped)" in captured.err


def test_a_message_that_was_stopped_before_any_answer_was_not_asked():
    conversation = interrupted_after()
    conversation.run()
    assert conversation.history == ()


def test_the_conversation_goes_on_after_ctrl_c():
    conversation = interrupted_after("我")
    conversation.run("零")
    assert [each.content for each in conversation.history] == ["零", "我", "甲", "二"]


def test_a_failing_turn_is_reported_and_forgotten(capsys: pytest.CaptureFixture[str]):
    history, _ = converse("甲", "x" * 9000, "half \udcff", "乙", CTRL_D)
    assert [each.content for each in history] == ["甲", "一", "乙", "二"]
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("glm3: error: ")]
    assert ["tokens" in errors[0], "surrogate" in errors[1], len(errors)] == [True, True, 2]


def test_a_failure_in_the_middle_of_a_reply_keeps_the_history_before_it():
    def answer(asked, tools):
        yield TextDelta("half")
        raise PromptTooLongError("too long")

    ask, _ = typing("甲", CTRL_D)
    before = (Message.system("x"),)
    conversation = Conversation(answer=answer, ask=ask, history=before)
    conversation.run()
    assert conversation.history == before


def test_the_person_is_asked_what_a_tool_returned(capsys: pytest.CaptureFixture[str]):
    history, prompts = converse(
        "天气?", "晴", CTRL_D, replies=[WEATHER, "今天晴"], tools=[ToolSpec("get_weather")]
    )
    assert prompts == ["> ", "observation> ", "> "]
    assert history == (
        Message.user("天气?"),
        WEATHER[0],
        Message.observation("晴"),
        Message.assistant("今天晴"),
    )
    assert capsys.readouterr().out == "→ get_weather(city='北京')\n今天晴\n"


def test_every_call_of_a_reply_gets_its_observation():
    both = [call("a", "x=1"), SpecialToken.ASSISTANT, call("b", "x=2"), SpecialToken.OBSERVATION]
    history, prompts = converse(
        "?", "1", "2", CTRL_D, replies=[both, "ok"], tools=[ToolSpec("a"), ToolSpec("b")]
    )
    assert prompts.count("observation> ") == 2
    spoken = [each.content for each in history if each.role is Role.OBSERVATION]
    assert spoken == ["1", "2"]
    assert [each.metadata for each in history] == ["", "a", "", "b", "", ""]


def test_without_tools_nobody_is_asked_for_an_observation():
    _, prompts = converse("天气?", CTRL_D, replies=[WEATHER])
    assert prompts == ["> ", "> "]


def test_quitting_at_an_observation_ends_the_conversation():
    history, _ = converse("?", "/quit", replies=[WEATHER], tools=[ToolSpec("get_weather")])
    assert history == (Message.user("?"), WEATHER[0])
