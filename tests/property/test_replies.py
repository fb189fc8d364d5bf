from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from glm3sdk.domain.chat import Delta, MalformedToolCall, ToolCall, ToolCallDelta, ToolCallEnd
from glm3sdk.domain.replies import ReplyParser, parse_reply
from glm3sdk.domain.tool_calls import parse_tool_call, render_tool_call

# Text that meets every branch: random characters alone would hardly ever make a call.
PIECES = st.sampled_from(
    [
        *("```python\n", "```", "``", "`", "tool_call(", "tool_call", "a=1", ")", ", ", "'", '"'),
        *("\n", " ", "\t", "\\", "interpreter", "get_weather", "name ", "{", "}", "[", "]", "**"),
        *('{"name": "f", "arguments": {}}', "[[训练时间]]", "[[训练", "时间]]", "[", "你好", "，"),
        *("x" * 40, "from=", "user-id=", "true", "-", "1e999", "\\u0041", "\0", "\r", "#", "。"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=20).map("".join)
TURNS = st.lists(TEXTS, min_size=1, max_size=3)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)
KEYS = st.text() | st.sampled_from(["from", "None", "user-id", "self", "ª", "हिन्दी", "℘"])


def stream(turns: list[str], cuts: st.DataObject) -> tuple[ReplyParser, list[Delta]]:
    parser = ReplyParser()
    deltas: list[Delta] = []
    for number, turn in enumerate(turns):
        if number:
            deltas += parser.next_turn()
        places = cuts.draw(st.lists(st.integers(0, len(turn)), max_size=12))
        for start, end in pairwise(sorted({0, len(turn), *places})):
            deltas += parser.feed(turn[start:end])
    return parser, deltas + parser.finish()


@given(TURNS, st.data())
def test_a_stream_says_what_the_whole_reply_says(turns: list[str], cuts: st.DataObject) -> None:
    reply = parse_reply("<|assistant|>".join(turns))
    parser, deltas = stream(turns, cuts)
    assert "".join(delta.content for delta in deltas) == reply.content
    assert parser.parts == reply.parts
    assert tuple((turn.metadata, turn.content) for turn in reply.history) == parser.turns
    assert len(parser.turns) == len(turns)


@given(TURNS, st.data())
def test_a_call_s_deltas_are_its_body(turns: list[str], cuts: st.DataObject) -> None:
    parser, deltas = stream(turns, cuts)
    calls = [turn for turn in parser.turns if turn[0]]
    ends = [delta for delta in deltas if isinstance(delta, ToolCallEnd)]
    assert [end.index for end in ends] == list(range(len(calls)))
    for index, (_, content) in enumerate(calls):
        body = "".join(
            delta.raw
            for delta in deltas
            if isinstance(delta, ToolCallDelta) and delta.index == index
        )
        assert body.strip() == content


@given(TEXTS)
def test_a_reply_cut_anywhere_is_read_without_an_error(text: str) -> None:
    parser = ReplyParser()
    parser.feed(text)
    parser.finish(complete=False)
    assert len(parser.turns) == 1


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5))
@example({"**": {"": []}, "a b": "'''\"\"\"\\", "ok": -0.5})
def test_a_rendered_call_is_read_back(arguments: dict[str, object]) -> None:
    call = parse_tool_call("f", render_tool_call(arguments))
    assert isinstance(call, ToolCall), call
    assert call.arguments == arguments
    assert call.repair is None


@given(TEXTS | st.text(st.characters()), st.sampled_from(["", "tool_call(", "tool_call(a=", "{"]))
def test_any_body_is_read_without_an_error(text: str, opening: str) -> None:
    assert isinstance(parse_tool_call("f", opening + text), ToolCall | MalformedToolCall)
