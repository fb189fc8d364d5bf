from __future__ import annotations

from typing import Any

import pytest

from glm3sdk.domain.chat import MalformedToolCall, ToolCall
from glm3sdk.domain.tool_calls import MAX_BODY_LENGTH, parse_tool_call, render_tool_call
from glm3sdk.errors import InvalidMessageError


def read(arguments: str) -> ToolCall:
    call = parse_tool_call("f", f"```python\ntool_call({arguments})\n```")
    assert isinstance(call, ToolCall), call
    return call


def refused(body: str) -> str:
    call = parse_tool_call("f", body, raw="whole turn")
    assert isinstance(call, MalformedToolCall), call
    assert (call.name, call.raw) == ("f", "whole turn")
    return call.reason


def test_a_call_is_written_as_the_model_writes_it() -> None:
    arguments = {
        "city": "北京",
        "days": 3,
        "from": None,
        "deep": [True, {"a": -1.5}],
        "a-b": "it's",
    }
    assert render_tool_call(arguments) == (
        "```python\ntool_call(city='北京', days=3, from=None, deep=[True, {'a': -1.5}], "
        "**{'a-b': \"it's\"})\n```"
    )
    assert render_tool_call({}) == "```python\ntool_call()\n```"


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), {1}, b"", 1j, {1: 2}, "\ud800", object()]
)
def test_a_call_with_arguments_that_are_not_json_is_not_written(value: Any) -> None:
    with pytest.raises(InvalidMessageError, match="JSON values"):
        render_tool_call({"a": [value]})


def test_an_integer_that_python_does_not_print_is_not_written() -> None:
    with pytest.raises(InvalidMessageError, match="an integer of 20001 bits"):
        render_tool_call({"a": 1 << 20000})


def test_arguments_that_hold_themselves_are_not_written() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidMessageError, match="deep"):
        render_tool_call({"a": loop})


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'x'", "x"),
        ('"it\'s"', "it's"),
        ("'''a\n'b'\n'''", "a\n'b'\n"),
        ("''", ""),
        ("'a' \"b\"\n u'c'", "abc"),
        (r"'\n\t\\\'\x41\u4f60\N{BULLET}\101'", "\n\t\\'A你•A"),
        (r"r'\d\n'", r"\d\n"),
        (r"'\d+\.\w'", r"\d+\.\w"),
        (r"'C:\users\x'", r"C:\users\x"),
        (r"'\400\779'", "\\400?9"),
        ("'a\\\nb'", "ab"),
        ("'), tool_call(x=1, ```'", "), tool_call(x=1, ```"),
        ("'#'  # a comment", "#"),
        ("'a\0b\r'", "a\0b\r"),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-3", -3),
        ("+3", 3),
        ("- 2.5e-3", -0.0025),
        (".5", 0.5),
        ("5.", 5.0),
        ("True", True),
        ("False", False),
        ("None", None),
        ("[1, 'a', []]", [1, "a", []]),
        ("(0, 100)", [0, 100]),
        ("(1,)", [1]),
        ("(1)", 1),
        ("()", []),
        ("{'a': {'b': [1]}, 'c': 'd',}", {"a": {"b": [1]}, "c": "d"}),
    ],
)
def test_python_literals_are_read(written: str, value: object) -> None:
    call = read(f"value={written}\n, last=1,")
    assert call == ToolCall("f", {"value": value, "last": 1})
    assert type(call.arguments["value"]) is type(value)


@pytest.mark.parametrize("keyword", ["from", "class", "in", "None", "城市", "match"])
def test_a_python_keyword_can_name_an_argument(keyword: str) -> None:
    assert read(f"{keyword} = 'from=1'") == ToolCall("f", {keyword: "from=1"})


def test_a_literal_dict_can_be_unpacked() -> None:
    assert read("a=1, **{'b c': 2}, d=3") == ToolCall("f", {"a": 1, "b c": 2, "d": 3})


@pytest.mark.parametrize(
    "body",
    [
        "tool_call(a=1)",
        " ```python\ntool_call(a=1)",
        "\n ```\ntool_call(a=1)\n``` ",
        "```python tool_call(a=1)```",
        "```tool_call(a=1)```",
        "```Python\r\ntool_call(a=1)\r\n```\r\n",
        "tool_call(a=1)\n```",
    ],
)
def test_the_fence_may_be_anything_from_absent_to_complete(body: str) -> None:
    assert parse_tool_call("f", body) == ToolCall("f", {"a": 1})


@pytest.mark.parametrize(
    ("body", "arguments", "repair"),
    [
        ("tool_call(a=true, b=[false, null])", {"a": True, "b": [False, None]}, "true, false"),
        ("tool_call(user-id=7)", {"user-id": 7}, "hyphens"),
        (r"tool_call(a='\ud83d\udc4b')", {"a": "👋"}, "surrogate pairs"),
        ("```\ntool_call(a=1)\n```\nI called it.", {"a": 1}, "after the closing fence"),
        ('```json\n{"name": "f", "arguments": {"a": "x\\/y"}}\n```', {"a": "x/y"}, "JSON object"),
        ('{"name": "f", "parameters": {"a": true}}', {"a": True}, "JSON object"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}, "JSON object"),
        ("{'name': 'f', 'arguments': {'a': None}}", {"a": None}, "JSON object"),
    ],
)
def test_what_was_mended_is_reported(body: str, arguments: dict[str, Any], repair: str) -> None:
    call = parse_tool_call("f", body)
    assert isinstance(call, ToolCall), call
    assert call.arguments == arguments
    assert call.repair is not None
    assert repair in call.repair


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ("origin=origin", "origin"),
        ("'x'", "'x'"),
        ("x", "x"),
        ('"location"="Beijing"', "location"),
        ("a=1, a=2", "'a' is given twice"),
        ("a=1, **{'a': 2}", "'a' is given twice"),
        ("**[1]", "[1]"),
        ("*[1]", "*[1]"),
        ("a=f(1)", "f(1)"),
        ("a=__import__('os').system('true')", "__import__"),
        ("a=f'{x}'", "f'{x}'"),
        ("a=b'x'", "b'x'"),
        ("a={1, 2}", "a set"),
        ("a={1: 2}", "no string"),
        ("a=...", "..."),
        ("a=1j", "1j"),
        ("a=007", "007"),
        ("a=1 + 1", "+ 1"),
        ("a='x' + 'y'", "+ 'y'"),
        ("a=--1", "--1"),
        ("a=[x for x in y]", "x for"),
        ("a=[1 2]", "2]"),
        ("a={'b' 1}", "':' is missing"),
        ("a={'b': 1 'c': 2}", "'c'"),
        ("a=not True", "not True"),
        ("a=lambda: 1", "lambda"),
        ("a=1e999", "inf"),
        ("a=nan", "nan"),
        ("a=" + "9" * 5000, "999"),
        ("a=0x" + "f" * 20000, "80000 bits"),
        (r"a='\ud800'", "half of a character"),
        ("a='\ud800'", "half of a character"),
        (r"a='\N{NO SUCH NAME}'", "NO SUCH NAME"),
        ("a='unterminated", "unterminated"),
        ("a='''x'", "'''x'"),
        ("a=", "not a literal"),
        ("a==1", "a==1"),
        ("1a=1", "1a=1"),
        ("a=1; b=2", "; b=2"),
    ],
)
def test_anything_but_a_literal_is_refused_with_the_piece_quoted(
    arguments: str, quoted: str
) -> None:
    reason = refused(f"```python\ntool_call({arguments})\n```")
    assert quoted in reason or quoted in reason.replace("\\'", "'")


@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        ("", "at the end"),
        ("```python\n```", "'tool_call' is missing"),
        ("tool_call(a=1", "')' is missing"),
        ("print(1)\ntool_call()", "print(1)"),
        ("tool_call(a=1)\ntool_call(b=2)", "text after the call"),
        ("tool_call", "'(' is missing"),
        ('{"name": "g", "arguments": {}}', "'g'"),
        ('{"city": "x"}', "city"),
        ('{"name": "f", "arguments": [1]}', "[1]"),
        ('{"name": "f", "arguments": "x"}', "'x'"),
        ('{"name": 0x' + "f" * 20000 + ', "arguments": {}}', "80000 bits"),
        ('{"name": "f", "arguments": {"a": NaN}}', "nan"),
        ('{"name": "f", "arguments": {"a": "\\ud800"}}', "half of a character"),
        ('{"name": ', "at the end"),
    ],
)
def test_a_body_that_is_no_call_is_refused(body: str, quoted: str) -> None:
    assert quoted in refused(body)


@pytest.mark.parametrize("opening", ["[", "(", "{'a':", "-", "a.", "f(", "'x' ", "#\n", "\\\n"])
def test_a_body_made_to_exhaust_the_reader_is_refused(opening: str) -> None:
    for length in (1000, MAX_BODY_LENGTH // len(opening) - 20, MAX_BODY_LENGTH):
        assert refused("tool_call(a=" + opening * length)


def test_deep_json_is_refused() -> None:
    assert "deep" in refused('{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001)


def test_a_body_beyond_the_limit_is_refused() -> None:
    padding = "x" * (MAX_BODY_LENGTH - len("tool_call(a='')"))
    assert isinstance(parse_tool_call("f", f"tool_call(a='{padding}')"), ToolCall)
    assert str(MAX_BODY_LENGTH) in refused(f"tool_call(a='{padding}x')")


def test_the_raw_text_is_the_turn_unless_another_is_given() -> None:
    call = parse_tool_call("f", "tool_call(")
    assert isinstance(call, MalformedToolCall)
    assert call.raw == "f\ntool_call("
