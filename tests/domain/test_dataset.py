from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.domain.chat import Message, Role, ToolSpec
from glm3sdk.domain.dataset import (
    Conversation,
    DropKind,
    Dropped,
    TextPair,
    TrainingMessage,
    parse_conversation,
    parse_pair,
)
from glm3sdk.domain.prompt import TOOL_SYSTEM_PROMPT

COLUMNS = ("content", "summary")


def pair(data: bytes, *, line: int = 7) -> TextPair | Dropped:
    return parse_pair(data, line=line, columns=COLUMNS)


def conversation(record: Any) -> Conversation | Dropped:
    return parse_conversation(json.dumps(record).encode(), line=7)


def test_the_columns_are_configurable():
    data = '{"问": "你好", "答": "您好", "summary": 3}'.encode()
    assert parse_pair(data, line=1, columns=("问", "答")) == TextPair("你好", "您好")


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    assert pair(b'\xef\xbb\xbf{"content": "a", "summary": "b"}\r\n', line=1) == TextPair("a", "b")


@pytest.mark.parametrize(
    ("data", "kind", "detail"),
    [
        (b"\n", DropKind.EMPTY_LINE, ""),
        (b" \t\r\n", DropKind.EMPTY_LINE, ""),
        (b'{"content": "a", "summary": "b"', DropKind.NOT_JSON, "column"),
        (b'{"content": "a", "summary": "b"} x', DropKind.NOT_JSON, "Extra data"),
        (b'{"content": "a\0", "summary": "b"}', DropKind.NOT_JSON, "control character"),
        (b"\0\0\0\0", DropKind.NOT_JSON, "column 1"),
        (b"[" * 100_000, DropKind.NOT_JSON, "recursion"),
        (b'{"content": ' + b"9" * 5000 + b"}", DropKind.NOT_JSON, "digits"),
        (b'\xef\xbb\xbf{"content": "a", "summary": "b"}', DropKind.NOT_JSON, "BOM"),
        (b'{"content": "\xff", "summary": "b"}', DropKind.NOT_UTF8, "0xff at 13"),
        ('{"content": "a"}'.encode("utf-16"), DropKind.NOT_UTF8, "0xff at 0"),
        (b'["content", "summary"]', DropKind.WRONG_TYPE, "a record is an object"),
        (b"3", DropKind.WRONG_TYPE, "not 3"),
        (b'{"content": "a"}', DropKind.MISSING_KEY, "'summary'"),
        (b'{"summary": "a"}', DropKind.MISSING_KEY, "'content'"),
        (b'{"content": "a", "summary": " "}', DropKind.BLANK_VALUE, "'summary'"),
        (b'{"content": 12, "summary": "b"}', DropKind.WRONG_TYPE, "'content' must be text, not 12"),
        (b'{"content": null, "summary": "b"}', DropKind.WRONG_TYPE, "not None"),
    ],
)
def test_a_line_that_is_no_pair_says_why_and_where(data: bytes, kind: DropKind, detail: str):
    dropped = pair(data)
    assert isinstance(dropped, Dropped)
    assert (dropped.line, dropped.kind) == (7, kind)
    assert detail in dropped.detail
    assert dropped.reason.startswith(str(kind))


@given(st.binary(max_size=200))
def test_no_bytes_make_a_reader_raise(data: bytes):
    assert isinstance(pair(data), Dropped | TextPair)
    assert isinstance(parse_conversation(data, line=1), Dropped | Conversation)


_KEYS = st.sampled_from(
    [
        *("conversations", "messages", "tools", "role", "content", "name", "parameters"),
        *("loss", "observation", "tool_calls", "tool_call_id", "function", "metadata"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "bot"])},
        optional={
            "content": _JSON,
            "name": _JSON,
            "parameters": _JSON,
            "observation": _JSON,
            "loss": _JSON,
            "tool_calls": _JSON,
        },
    ),
    max_size=3,
)


@given(st.sampled_from(["conversations", "messages"]), _TURNS | _JSON, st.none() | _JSON)
def test_no_json_makes_the_reader_of_conversations_raise(key: str, turns: Any, tools: Any):
    record = conversation({key: turns, "tools": tools})
    assert isinstance(record, Dropped | Conversation)


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
TOOL = {"role": "tool", "name": "f", "parameters": {"a": "x"}, "observation": {"b": "日"}}


def test_a_tool_turn_becomes_a_call_and_an_observation():
    record = conversation({"tools": ["f: does"], "conversations": [USER, ANSWER, TOOL, ANSWER]})
    assert record == Conversation(
        (
            TrainingMessage(Message.system(TOOL_SYSTEM_PROMPT, tools=["f: does"]), False),
            TrainingMessage(Message.user("hi"), False),
            TrainingMessage(Message.assistant("ho"), True),
            TrainingMessage(
                Message.assistant("```python\ntool_call(a='x')\n```", metadata="f"), True
            ),
            TrainingMessage(Message.observation('{"b": "日"}'), False),
            TrainingMessage(Message.assistant("ho"), True),
        )
    )


def test_tools_join_a_system_message_that_opens_the_conversation():
    system = {"role": "system", "content": "be brief"}
    record = conversation({"tools": ["f"], "conversations": [system, USER, ANSWER]})
    assert isinstance(record, Conversation)
    assert record.messages[0].message == Message.system("be brief", tools=["f"])
    assert len(record.messages) == 3


def test_turns_can_be_kept_out_of_the_loss_and_only_the_assistant_is_ever_in_it():
    turns = [
        {**USER, "loss": True},
        {**ANSWER, "loss": False},
        {**TOOL, "loss": False},
        {"role": "observation", "content": "o", "loss": True},
        ANSWER,
    ]
    record = conversation({"conversations": turns})
    assert isinstance(record, Conversation)
    assert [entry.trained for entry in record.messages] == [False] * 5 + [True]


def test_openai_messages_with_tools_are_read_as_chat_reads_them():
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    later = {"id": "2", "function": {"name": "g", "arguments": "{}"}}
    record = conversation(
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [call, later], "loss": False},
                {"role": "tool", "tool_call_id": "1", "content": "one"},
                {"role": "tool", "tool_call_id": "2", "content": "two"},
                {**ANSWER, "weight": 0},
                USER,
                ANSWER,
            ],
        }
    )
    assert isinstance(record, Conversation)
    messages = [entry.message for entry in record.messages]
    assert messages[0] == Message.system(TOOL_SYSTEM_PROMPT, tools=[ToolSpec("f")])
    assert [(m.role, m.metadata or m.content) for m in messages[1:6]] == [
        (Role.USER, "hi"),
        (Role.ASSISTANT, "f"),
        (Role.OBSERVATION, "one"),
        (Role.ASSISTANT, "g"),
        (Role.OBSERVATION, "two"),
    ]
    assert [entry.trained for entry in record.messages] == [False] * 8 + [True]


@pytest.mark.parametrize(
    ("record", "kind", "detail"),
    [
        ({"tools": []}, DropKind.MISSING_KEY, "'conversations' (or 'messages')"),
        ({"conversations": []}, DropKind.BLANK_VALUE, "'conversations'"),
        ({"messages": "hi"}, DropKind.WRONG_TYPE, "'messages' must be a list"),
        ({"conversations": ["hi"]}, DropKind.WRONG_TYPE, "conversations[0]"),
        ({"conversations": [USER, {"content": "x"}]}, DropKind.MISSING_KEY, "[1].role"),
        ({"conversations": [{"role": "user"}]}, DropKind.MISSING_KEY, "[0].content"),
        ({"messages": [{"role": "bot"}]}, DropKind.UNKNOWN_ROLE, "messages[0]: 'bot'"),
        ({"conversations": [{"role": ["user"]}]}, DropKind.UNKNOWN_ROLE, "known: assistant"),
        ({"conversations": [{**USER, "loss": 0}]}, DropKind.WRONG_TYPE, "[0].loss"),
        ({"conversations": [{**TOOL, "parameters": "a"}]}, DropKind.WRONG_TYPE, ".parameters"),
        ({"conversations": [{**TOOL, "name": ""}]}, DropKind.WRONG_TYPE, ".name"),
        ({"conversations": [{"role": "tool", "name": "f"}]}, DropKind.MISSING_KEY, ".parameters"),
        ({"conversations": [USER], "tools": "f"}, DropKind.WRONG_TYPE, "'tools'"),
        (
            {"conversations": [USER, {**USER, "content": 5}]},
            DropKind.UNREADABLE_MESSAGE,
            "conversations[1]: content must be text, not 5",
        ),
        ({"messages": [{**USER, "content": "\ud800"}]}, DropKind.UNREADABLE_MESSAGE, "surrogate"),
        ({"messages": [USER], "tools": [{}]}, DropKind.UNREADABLE_MESSAGE, "a tool is"),
        (
            {"conversations": [{**ANSWER, "tool_calls": []}]},
            DropKind.WRONG_TYPE,
            "belong under 'messages'",
        ),
    ],
)
def test_a_line_that_is_no_conversation_says_why(record: Any, kind: DropKind, detail: str):
    dropped = conversation(record)
    assert isinstance(dropped, Dropped)
    assert (dropped.line, dropped.kind) == (7, kind)
    assert detail in dropped.detail
