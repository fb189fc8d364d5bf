from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm3sdk.domain.chat import (
    CodeCell,
    Delta,
    FinishReason,
    MalformedToolCall,
    Message,
    Part,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from glm3sdk.domain.replies import ReplyParser, finish_reason, parse_reply

CALL = "```python\ntool_call(city='北京')\n```"


def parse(text: str) -> Part:
    (part,) = parse_reply(text).parts
    return part


def steps(*pieces: str) -> list[str]:
    """The text that each piece lets through, and what the end adds."""
    parser = ReplyParser()
    given = [parser.feed(piece) for piece in pieces] + [parser.finish()]
    return ["".join(delta.content for delta in deltas) for deltas in given]


def golden_rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "tool_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_real_replies_are_read_as_expected(shared_data: Path) -> None:
    rows = golden_rows(shared_data)
    assert {row["expect"]["type"] for row in rows} == {
        *("tool", "tool_body", "code", "text", "malformed")
    }
    for row in rows:
        expect, raw = row["expect"], row["raw"]
        if expect["type"] == "tool_body":
            expect, raw = {**expect, "name": "any_name"}, f"any_name\n{raw}"
        reply = parse_reply(raw)
        part = reply.parts[-1]
        if expect["type"] == "code":
            inside = expect["content"].removeprefix("```python\n").removesuffix("\n```")
            assert part == CodeCell(inside)
        elif expect["type"] == "text":
            assert reply.parts == (Text(expect["content"]),)
        elif expect["type"] == "malformed":
            assert isinstance(part, MalformedToolCall)
            assert (part.name, part.raw) == (expect["name"], raw)
        else:
            assert part == ToolCall(expect["name"], expect["parameters"])
        for turn, segment in zip(reply.history, row.get("segments", ()), strict=False):
            if expect["type"] != "text":
                assert turn.metadata == segment["metadata"].strip()
                assert turn.content == segment["content"].strip()


def test_text_before_a_call_is_a_turn_of_its_own() -> None:
    reply = parse_reply(f"\n 好的\n<|assistant|> get_weather\n {CALL}")
    assert reply.parts == (Text("好的"), ToolCall("get_weather", {"city": "北京"}))
    assert reply.content == "好的"
    assert reply.finish_reason == FinishReason.TOOL_CALLS
    assert reply.history == (
        Message.assistant("好的"),
        Message.assistant(CALL, metadata="get_weather"),
    )


def test_only_calls_that_can_be_read_ask_for_a_tool() -> None:
    assert finish_reason([Text("x"), CodeCell("1")]) is FinishReason.TOOL_CALLS
    assert finish_reason([MalformedToolCall("f", "f\n{", "why")]) is FinishReason.STOP
    assert parse_reply("你好").finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "text",
    [
        "你好",
        "get_weather",
        "Hello.\nHow are you?",
        "一\n二\n三",
        "Two words\n```python\ntool_call()\n```",
        "name:\n```python\ntool_call()\n```",
        "x" * 65 + "\n```python\ntool_call()\n```",
        "9lives\n```python\ntool_call()\n```",
        "get_weather\n``",
        "get_weather\ntool",
        "get_weather\n(tool_call())",
        "```python\nprint('hi')\n```",
        "```python\nx = 1\n```\nUse tool_call(x=1).",
        "```tool_call(a=1)```",
        "```",
        "interpreter",
        "{",
        "\N{WAVING HAND SIGN}",
    ],
)
def test_a_turn_that_names_no_tool_is_text(text: str) -> None:
    assert parse(text) == Text(text)
    assert parse(f"\n {text} \n") == Text(text)
    assert parse_reply(f"\n {text} \n").history == (Message.assistant(text),)


def test_an_empty_turn_is_kept_in_the_history_alone() -> None:
    reply = parse_reply(" \n ")
    assert reply.parts == ()
    assert reply.history == (Message.assistant(""),)


@pytest.mark.parametrize("name", ["get_weather", "天气", "a.b-c", "x" * 64, "_f"])
@pytest.mark.parametrize("body", [CALL, f" {CALL}", "\n\ntool_call(city='北京')"])
def test_a_name_on_the_first_line_makes_a_call(name: str, body: str) -> None:
    assert parse(f" {name} \n{body}") == ToolCall(name, {"city": "北京"})


def test_a_json_body_is_a_call() -> None:
    part = parse('f\n{"name": "f", "arguments": {"a": 1}}')
    assert isinstance(part, ToolCall)
    assert part.arguments == {"a": 1}
    assert part.repair


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("```python\nx = '```'\nx\n```", "x = '```'\nx"),
        (" ```\n  x\n\n```\n", "  x"),
        ("```python\nx\n```\nIt prints x.", "x"),
        ("```python\nx", "x"),
        ("```python x```", "x"),
        ("```python\ntool_call(a=1)\n```", "tool_call(a=1)"),
        ("```python\n```", ""),
    ],
)
def test_the_interpreter_gets_the_code_inside_the_fence(body: str, code: str) -> None:
    assert parse(f"interpreter\n{body}") == CodeCell(code)


def test_code_without_a_fence_is_malformed() -> None:
    part = parse("interpreter\nprint(1)")
    assert isinstance(part, MalformedToolCall)
    assert (part.name, part.raw) == ("interpreter", "interpreter\nprint(1)")
    assert "no code fence before 'print(1)'" in part.reason


def test_a_call_without_a_name_line_is_malformed() -> None:
    text = f" {CALL}"
    part = parse(text)
    assert isinstance(part, MalformedToolCall)
    assert (part.name, part.raw) == ("```python", text)
    assert "name is missing" in part.reason


def test_the_placeholder_is_filled_in_for_the_reader_alone() -> None:
    reply = parse_reply("数据截至[[训练时间]]。")
    assert reply.content == "数据截至2023年。"
    assert reply.history == (Message.assistant("数据截至[[训练时间]]。"),)


def test_half_a_character_is_replaced() -> None:
    assert parse_reply("a\ud800b\ud83d\udc4b").content == "a\ufffdb👋"


def test_text_streams_as_soon_as_it_cannot_be_a_name() -> None:
    assert steps("你好", "！", "我是", "助手") == ["", "你好！", "我是", "助手", ""]
    assert steps("\n", " Hello", " world") == ["", "Hello", " world", ""]
    assert steps("Hello ", "w") == ["", "Hello w", ""]
    assert steps("Hello\n", " too", "k") == ["", "", "Hello\n took", ""]
    assert steps("```python\n", "print", "()") == ["", "```python\nprint", "()", ""]


def test_whitespace_and_half_a_placeholder_wait_for_what_follows() -> None:
    assert steps("好！ ", "\n", "吗 [", "[训练", "时间", "]] ") == [
        *("好！", "", " \n吗 ", "", "", "2023年", "")
    ]
    assert steps("好！[[训练", "中") == ["好！", "[[训练中", ""]
    assert steps("好！[[[训练时间]") == ["好！[", "[[训练时间]"]


def test_a_call_streams_its_events() -> None:
    parser = ReplyParser()
    deltas: list[Delta] = parser.feed("好的！")
    deltas += parser.next_turn()
    for piece in (" f", "\n", " ```py", "thon\ntool_call(", "a=1)"):
        deltas += parser.feed(piece)
    deltas += parser.next_turn()
    deltas += parser.feed("interpreter\n```\n1")
    deltas += parser.finish()
    call, cell = ToolCall("f", {"a": 1}), CodeCell("1")
    assert deltas == [
        TextDelta("好的！"),
        ToolCallStart(0, "f"),
        ToolCallDelta(0, " ```py"),
        ToolCallDelta(0, "thon\ntool_call("),
        ToolCallDelta(0, "a=1)"),
        ToolCallEnd(0, call),
        ToolCallStart(1, "interpreter"),
        ToolCallDelta(1, "```\n1"),
        ToolCallEnd(1, cell),
    ]
    assert parser.parts == (Text("好的！"), call, cell)
    assert parser.turns == (
        ("", "好的！"),
        ("f", "```python\ntool_call(a=1)"),
        ("interpreter", "```\n1"),
    )


@pytest.mark.parametrize("body", ["```python\ntool_call(a='x", "{", "tool_call"])
def test_a_call_that_was_cut_off_says_so(body: str) -> None:
    parser = ReplyParser()
    parser.feed(f"f\n{body}")
    (end,) = parser.finish(complete=False)
    (part,) = parser.parts
    assert isinstance(part, MalformedToolCall)
    assert end == ToolCallEnd(0, part)
    assert part.raw == f"f\n{body}"
    assert "cut off" in part.reason


def test_code_that_was_cut_off_is_not_run() -> None:
    parser = ReplyParser()
    parser.feed("interpreter\n```python\nremove(")
    parser.finish(complete=False)
    (part,) = parser.parts
    assert isinstance(part, MalformedToolCall)
    assert "cut off" in part.reason


def test_a_call_that_ends_before_the_cut_counts() -> None:
    parser = ReplyParser()
    parser.feed("f\n```python\ntool_call(a=1)")
    parser.finish(complete=False)
    assert parser.parts == (ToolCall("f", {"a": 1}),)
