from __future__ import annotations

import json
from pathlib import Path
from threading import Barrier, Thread

import pytest

import glm3sdk
from glm3sdk import (
    CodeCell,
    GenerationConfig,
    Glm3Service,
    Message,
    ReplyEnd,
    Text,
    ToolCallEnd,
    ToolCallStart,
    tool,
)
from glm3sdk.domain.history import read_history
from glm3sdk.errors import PromptTooLongError

GREEDY = GenerationConfig(do_sample=False)
DIALOGUES = Path(__file__).parents[2] / "training" / "tiny" / "dialogues"

QUESTIONS = ("你好", "请介绍一下华为", "晚上睡不着应该怎么办", "写一个快排算法")


@tool
def get_weather(city: str) -> dict[str, object]:
    """查询城市的天气"""
    assert city == "北京"
    return {"temperature": 22, "condition": "晴"}


def test_it_greets_and_calls_itself_an_assistant(tiny: Glm3Service):
    for _ in range(3):
        reply = tiny.chat([Message.user("你好")])
        assert reply.content.startswith("你好")
        assert "助手" in reply.content
        assert reply.finish_reason == "stop"


def test_greedy_text_is_the_same_alone_in_a_batch_streamed_and_after_a_reused_prefix(
    tiny: Glm3Service,
):
    alone = [tiny.chat([Message.user(question)], GREEDY) for question in QUESTIONS]
    batch = tiny.chat_batch([[Message.user(question)] for question in QUESTIONS], GREEDY)
    again = [tiny.chat([Message.user(question)], GREEDY) for question in QUESTIONS]
    assert [reply.content for reply in batch] == [reply.content for reply in alone]
    assert [reply.content for reply in again] == [reply.content for reply in alone]
    assert all(reply.usage.cached_tokens > 0 for reply in again)
    for question, reply in zip(QUESTIONS, alone, strict=True):
        events = list(tiny.stream_chat([Message.user(question)], GREEDY))
        assert "".join(event.content for event in events) == reply.content
        assert isinstance(events[-1], ReplyEnd)
        assert events[-1].reply.content == reply.content


def test_the_second_turn_reads_only_what_is_new(tiny: Glm3Service):
    first = tiny.chat([Message.user("你好")], GREEDY)
    question = Message.user("晚上睡不着应该怎么办")
    second = tiny.chat([*first.history, question], GREEDY)
    # Everything up to the stop token, which was chosen but never read.
    assert second.usage.cached_tokens == first.usage.total_tokens - 1
    # A history rebuilt from its text is encoded to the same ids, for this answer.
    rebuilt = [{"role": m.role.value, "content": m.content} for m in first.history]
    by_text = tiny.chat([*rebuilt, {"role": "user", "content": question.content}], GREEDY)
    assert by_text.content == second.content
    assert by_text.usage.prompt_tokens == second.usage.prompt_tokens


def test_a_tool_is_called_and_its_observation_is_answered(tiny: Glm3Service):
    reply = tiny.run_tools([Message.user("北京的天气怎么样？")], [get_weather], GREEDY)
    assert "22" in reply.content
    assert "晴" in reply.content
    assert [message.role.value for message in reply.history] == [
        "user",
        "assistant",
        "observation",
        "assistant",
    ]
    assert reply.history[1].metadata == "get_weather"


def test_a_streamed_tool_call_is_an_event(tiny: Glm3Service):
    events = list(
        tiny.stream_chat([Message.user("北京的天气怎么样？")], GREEDY, [get_weather.spec])
    )
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    ends = [event for event in events if isinstance(event, ToolCallEnd)]
    assert [event.name for event in starts] == ["get_weather"]
    assert [event.part.arguments for event in ends] == [{"city": "北京"}]
    assert events[-1].reply.finish_reason == "tool_calls"
    assert "".join(event.content for event in events) == ""


def test_a_system_role_changes_the_answer(tiny: Glm3Service):
    plain = tiny.chat([Message.user("你好")], GREEDY)
    system = Message.system("假设你现在是一个导游，请尽可能贴近这个角色回答问题。")
    guide = tiny.chat([system, Message.user("你好")], GREEDY)
    assert "导游" in guide.content
    assert guide.content != plain.content


def test_a_history_may_end_in_a_system_message(tiny: Glm3Service):
    system = Message.system("假设你现在是一个导游，请尽可能贴近这个角色回答问题。")
    assert "导游" in tiny.chat([system], GREEDY).content


def test_the_code_interpreter_is_given_code(tiny: Glm3Service):
    (line, *_) = (DIALOGUES / "interpreter.jsonl").read_text("utf-8").splitlines()
    dialogue = read_history(json.loads(line)["messages"])
    reply = tiny.chat(dialogue[:2], GREEDY)
    (part,) = reply.parts
    assert isinstance(part, CodeCell)
    assert reply.finish_reason == "tool_calls"
    # The code is the model's own, learned from this dialogue; the observation is Python's.
    answer = tiny.chat([*reply.history, dialogue[3]], GREEDY)
    assert answer.parts == (Text(dialogue[4].content),)


def test_a_ready_made_prompt_is_read_as_a_chat(tiny: Glm3Service):
    chat = tiny.chat([Message.user("你好")], GREEDY)
    completion = tiny.generate("[gMASK]sop<|user|> \n 你好<|assistant|> \n", GREEDY)
    assert completion.text == chat.content
    # `<|assistant|>` is followed by the empty first line that the chat leaves to the model.
    assert completion.usage.prompt_tokens == chat.usage.prompt_tokens + 2


def test_most_trained_turns_come_back_to_the_character(tiny: Glm3Service):
    wanted = []
    for path in sorted(DIALOGUES.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines()[::6]:
            dialogue = read_history(json.loads(line)["messages"])
            end = next(i for i, message in enumerate(dialogue) if message.role.value == "assistant")
            if end > 0:
                wanted.append((dialogue[:end], dialogue[end]))
    replies = tiny.chat_batch([history for history, _ in wanted], GREEDY)
    right = sum(
        reply.history[len(history)] == expected
        for (history, expected), reply in zip(wanted, replies, strict=True)
    )
    assert right / len(wanted) >= 0.9


def test_several_threads_are_each_answered_as_if_alone(tiny: Glm3Service):
    alone = {
        question: tiny.chat([Message.user(question)], GREEDY).content for question in QUESTIONS
    }
    answers: list[tuple[str, str]] = []
    barrier = Barrier(len(QUESTIONS) * 2)

    def ask(question: str) -> None:
        barrier.wait(timeout=60)
        answers.append((question, tiny.chat([Message.user(question)], GREEDY).content))

    threads = [Thread(target=ask, args=(question,)) for question in QUESTIONS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(answers) == sorted((q, alone[q]) for q in QUESTIONS * 2)


def test_a_request_that_fails_leaves_the_service_usable(tiny: Glm3Service):
    with pytest.raises(PromptTooLongError):
        tiny.chat([Message.user("好" * 5000)])
    assert "助手" in tiny.chat([Message.user("你好")], GREEDY).content


def test_a_length_limit_keeps_the_last_real_token(tiny: Glm3Service):
    whole = tiny.chat([Message.user("你好")], GREEDY)
    cut = tiny.chat([Message.user("你好")], GenerationConfig(do_sample=False, max_new_tokens=6))
    assert cut.finish_reason == "length"
    assert cut.usage.completion_tokens == 6
    assert cut.content
    assert whole.content.startswith(cut.content)


def test_the_assets_are_small():
    assets = Path(glm3sdk.__file__).parent / "assets" / "tiny"
    assert sum(path.stat().st_size for path in assets.iterdir()) <= 12 * 2**20
