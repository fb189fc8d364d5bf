from __future__ import annotations

from glm3sdk.domain.chat import Message
from glm3sdk.domain.history import read_history
from glm3sdk.server.tools import read_messages


def asked(call_id: str, name: str, arguments: str) -> dict:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def told(call_id: str, content: str) -> dict:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_each_call_is_followed_by_its_answer_whatever_its_arguments_are():
    messages = [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "three things",
            "tool_calls": [
                asked("a", "f", "tool_call(x=y)"),
                asked("b", "g", '{"x": 1}'),
                asked("c", "interpreter", '{"code": "print(1)"}'),
            ],
        },
        told("c", "1"),
        told("b", "of g"),
        told("a", "of f"),
        {"role": "user", "content": "and?"},
    ]
    assert list(read_history(read_messages(messages))) == [
        Message.user("go"),
        Message.assistant("three things"),
        Message.assistant("tool_call(x=y)", metadata="f"),
        Message.observation("of f"),
        Message.assistant("```python\ntool_call(x=1)\n```", metadata="g"),
        Message.observation("of g"),
        Message.assistant("```python\nprint(1)\n```", metadata="interpreter"),
        Message.observation("1"),
        Message.user("and?"),
    ]


def test_answers_of_one_id_are_each_read_once():
    messages = [
        {
            "role": "assistant",
            "tool_calls": [asked("a", "f", "no json"), asked("a", "f", "no json")],
        },
        told("a", "one"),
        told("a", "two"),
    ]
    read = [message.content for message in read_history(read_messages(messages))]
    assert sorted(read) == ["no json", "no json", "one", "two"]


def test_messages_without_calls_stay_as_they_are():
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert read_messages(messages) == messages
