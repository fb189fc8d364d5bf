from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk import load_tokenizer
from glm3sdk.config.schema import DataFormat
from glm3sdk.domain.chat import Message
from glm3sdk.domain.dataset import DropKind, Dropped
from glm3sdk.domain.prompt import TOOL_SYSTEM_PROMPT
from glm3sdk.ports.line_source import Line
from glm3sdk.services.continuations import PromptLine, RecordReader, cut_text
from glm3sdk.services.record_layout import RecordEncoder, RecordLayout
from glm3sdk.testing import CharacterTokenizer

TOKENIZER = CharacterTokenizer()
PAIR = {"content": "abcdef", "summary": "xyz"}
CALL = Message.assistant("```python\ntool_call(a=1)\n```", metadata="f")


def line(value: object, number: int = 1) -> Line:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Line(number, 0, len(data), data)


def reader(layout: DataFormat = DataFormat.ADGEN, **lengths: int) -> RecordReader:
    return RecordReader(RecordLayout(format=layout, **lengths), TOKENIZER)


def test_a_raw_source_is_cut_as_in_training():
    assert reader(max_source_length=6).records(line(PAIR)) == [("abcd", "xyz")]
    assert reader().records(line(PAIR)) == [("abcdef", "xyz")]


def test_a_pair_in_the_chat_layout_is_a_turn_after_a_turn():
    expected = [((Message.user("abcdef"),), Message.assistant("xyz"))]
    assert reader(DataFormat.ADGEN_CHAT, max_seq_length=5).records(line(PAIR)) == expected


def test_every_trained_turn_follows_the_turns_before_it():
    record = {
        "tools": ["f"],
        "conversations": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "thought"},
            {"role": "tool", "name": "f", "parameters": {"a": 1}, "observation": "o"},
            {"role": "assistant", "content": "untrained", "loss": False},
            {"role": "assistant", "content": "end"},
        ],
    }
    opening = (Message.system(TOOL_SYSTEM_PROMPT, tools=("f",)), Message.user("u"))
    thought, observation = Message.assistant("thought"), Message.observation("o")
    untrained = Message.assistant("untrained")
    assert reader(DataFormat.MULTITURN).records(line(record)) == [
        (opening, thought),
        ((*opening, thought), CALL),
        ((*opening, thought, CALL, observation, untrained), Message.assistant("end")),
    ]


def test_a_turn_that_nothing_precedes_is_not_predicted():
    messages = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "u"}]
    assert reader(DataFormat.MULTITURN).records(line({"messages": messages})) == []


def test_a_line_that_is_no_record_says_why():
    dropped = reader().records(line({"content": "a"}, 7))
    assert dropped == Dropped(7, DropKind.MISSING_KEY, "'summary'")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "abcdefgh", "id": 1}, "abcdefgh"),
        ({"content": "abcdef"}, "abcd"),
        (PAIR, "abcd"),
        ({"messages": [{"role": "user", "content": "u"}]}, (Message.user("u"),)),
    ],
)
def test_a_prompt_keeps_all_that_stands_on_its_line(fields: dict[str, object], prompt: object):
    assert reader(max_source_length=6).prompt(line(fields)) == PromptLine(fields, prompt)


def test_tools_of_a_prompt_are_offered():
    tools = [{"name": "f", "description": "", "parameters": {}}]
    fields = {"messages": [{"role": "user", "content": "u"}], "tools": tools}
    read = reader().prompt(line(fields))
    assert isinstance(read, PromptLine)
    assert [tool.name for tool in read.prompt[0].tools] == ["f"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"prompt"', "not JSON: Expecting ':' delimiter (column 10)"),
        (b"\xff", "not UTF-8: byte 0xff at 0"),
        (b"[1]", "wrong type: a record is an object, not [1]"),
        (b'{"prompt": 3}', "wrong type: 'prompt' must be text, not 3"),
        (b'{"prompt": " "}', "blank value: 'prompt'"),
        (b'{"messages": []}', "blank value: 'messages'"),
        (b'{"content": ""}', "blank value: 'content'"),
        (b'{"text": "a"}', "missing key: 'prompt', 'messages' or 'content'"),
        (b"\n", "empty line"),
    ],
)
def test_a_line_that_is_no_prompt_says_why(data: bytes, reason: str):
    dropped = reader().prompt(line(data))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason


def test_a_line_too_long_for_memory_is_no_prompt():
    dropped = reader().prompt(Line(3, 0, 99, None))
    assert dropped == Dropped(3, DropKind.LINE_TOO_LONG, "99 bytes")


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 30))
def test_a_cut_text_is_the_longest_beginning_of_whole_characters(text: str, most: int):
    cut = cut_text(text, TOKENIZER, most)
    longer = text[: len(cut) + 1]
    assert text.startswith(cut)
    assert len(TOKENIZER.encode(cut)) <= most
    assert longer == cut or len(TOKENIZER.encode(longer)) > most


def test_a_cut_source_has_the_tokens_that_training_gave_it(shared_data: Path):
    tokenizer = load_tokenizer(shared_data / "tokenizer" / "tokenizer.model")
    layout = RecordLayout(format=DataFormat.ADGEN, max_source_length=24, max_target_length=8)
    records, encoder = RecordReader(layout, tokenizer), RecordEncoder(layout, tokenizer)
    lines = (shared_data / "advertisegen" / "dev.json").read_bytes().splitlines()[:200]
    cut = 0
    for number, data in enumerate(lines, start=1):
        ((source, _),) = records.records(line(data, number))
        example = encoder.encode(line(data, number))
        trained = example.input_ids[: example.learned[0][0]]
        assert tuple(tokenizer.encode(source)) == trained[2:]
        cut += len(trained) == 24
    assert cut > 100
