from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.domain.chat import ToolCall
from glm3sdk.domain.tool_calls import parse_tool_call, render_tool_call
from glm3sdk.server.tool_arguments import ArgumentStream, as_json

_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["it's, (so)", '"', "'''", "\\", "a,b='c'", "#", "```", "你好👋", "\n"]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from(["city", "days", "code", "user-id", "a b", "class", "x1"])


def fed(body: str, cuts: list[int]) -> tuple[ArgumentStream, list[str]]:
    stream, told = ArgumentStream(), []
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        told.append(stream.feed(body[start:end]))
    return stream, told


@given(st.dictionaries(_NAMES, _VALUES, max_size=4), st.lists(st.integers(0, 10**6), max_size=12))
def test_the_pieces_joined_are_the_json_of_the_arguments(arguments, cuts):
    body = render_tool_call(arguments)
    stream, told = fed(body, cuts)
    read = parse_tool_call("f", body)
    assert isinstance(read, ToolCall)
    whole = "".join(told) + stream.finish(read.arguments)
    assert whole == as_json(read.arguments)
    assert json.loads(whole) == read.arguments


@given(
    st.text("tool_cal()={}[],'\"\\#:a1 \n*rb", max_size=60).map(lambda text: f"tool_call({text}"),
    st.lists(st.integers(0, 100), max_size=6),
)
def test_what_is_told_of_any_text_is_the_beginning_of_what_will_be_read(body: str, cuts):
    stream, told = fed(body, cuts)
    read = parse_tool_call("f", body)
    if isinstance(read, ToolCall):
        assert as_json(read.arguments).startswith("".join(told))
        assert "".join(told) + stream.finish(read.arguments) == as_json(read.arguments)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("```python\ntool_call(city='北京', days=3", ['{"city": "北京"']),
        ("tool_call(a=[1, 2], b={'x': ','}, c=1", ['{"a": [1, 2]', ', "b": {"x": ","}']),
        ("tool_call(a='''it's, so''', b=1", ['{"a": "it\'s, so"']),
        ("tool_call(a='', b=\"\", c=2", ['{"a": ""', ', "b": ""']),
        ("tool_call(a=r'\\', b=1', c=2", ['{"a": "\\\\\', b=1"']),
        ("tool_call(a=1, a=2, b=3", ['{"a": 1']),
        ("tool_call(a=b, c=1, d=2", []),
        ('{"name": "f", "arguments": {"a": 1, "b": 2}', []),
    ],
)
def test_an_argument_is_told_when_the_comma_behind_it_came(body: str, told: list[str]):
    stream = ArgumentStream()
    # The last two characters may still belong to something longer.
    fragments = [stream.feed(char) for char in body + "  "]
    assert [fragment for fragment in fragments if fragment] == told


def test_a_call_of_many_arguments_is_read_once():
    body = "tool_call(" + ", ".join(f"a{n}={n}" for n in range(5000)) + ")"
    stream = ArgumentStream()
    told = "".join(stream.feed(body[n : n + 7]) for n in range(0, len(body), 7))
    assert told.startswith('{"a0": 0, "a1": 1')
    assert '"a4000": 4000' in told
