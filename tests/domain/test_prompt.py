from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from glm3sdk.domain.chat import Message, Role, ToolSpec
from glm3sdk.domain.prompt import (
    TOOL_SYSTEM_PROMPT,
    Segment,
    offer_tools,
    parse_ready_made,
    render_chat,
    render_message,
)
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_calls import render_tool_call
from glm3sdk.errors import InvalidMessageError, InvalidToolError

S = SpecialToken
WEATHER = ToolSpec("get_weather", "天气", {"type": "object", "properties": {}})


class Published:
    """The published tokenizer, and its rows of known ids."""

    def __init__(self, folder: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        lines = (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def ids(self, segments: tuple[Segment, ...]) -> list[int]:
        specials = list(SpecialToken)
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, SpecialToken):
                ids.append(self.pieces.get_piece_size() + specials.index(segment))
            else:
                ids += self.pieces.encode(segment)
        return ids


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Published:
    return Published(shared_data / "tokenizer")


def test_a_message_is_a_role_token_a_first_line_and_its_content() -> None:
    assert render_message(Message.user("hi")) == (S.USER, "\n", "hi")
    call = Message.assistant("body", metadata="get_weather")
    assert render_message(call) == (S.ASSISTANT, "get_weather\n", "body")
    assert render_message(Message.observation("")) == (S.OBSERVATION, "\n")


def test_role_tokens_in_text_stay_text() -> None:
    assert render_message(Message.user("<|system|>[gMASK]")) == (S.USER, "\n", "<|system|>[gMASK]")


def test_tools_follow_the_content_of_a_system_message() -> None:
    segments = render_message(Message.system("Tools:", tools=[WEATHER, "calculator"]))
    assert segments[2] == (
        'Tools:\n[\n    {\n        "name": "get_weather",\n        "description": "天气",\n'
        '        "parameters": {\n            "type": "object",\n            "properties": {}\n'
        '        }\n    },\n    "calculator"\n]'
    )


@pytest.mark.parametrize("tool", [object(), float("nan"), "\ud800"])
def test_tools_that_are_not_json_are_refused(tool: object) -> None:
    with pytest.raises(InvalidToolError, match="not JSON"):
        render_message(Message.system("", tools=[tool]))


def test_a_chat_opens_with_the_prefix_and_asks_for_the_assistant() -> None:
    segments = render_chat([Message.system("s"), Message.user("u")])
    assert segments == (S.GMASK, S.SOP, S.SYSTEM, "\n", "s", S.USER, "\n", "u", S.ASSISTANT)


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(InvalidMessageError, match="empty"):
        render_chat([])


def test_chats_have_the_published_ids(published: Published) -> None:
    rows = [row for row in published.rows if row["kind"] == "chat"]
    assert rows
    for row in rows:
        messages = [Message(Role(item["role"]), item["content"]) for item in row["messages"]]
        assert published.ids(render_chat(messages)) == row["ids"], row["source"]


def test_a_tool_conversation_has_the_published_ids(published: Published) -> None:
    (row,) = (row for row in published.rows if row["kind"] == "train_tool")
    conversation = (
        Message.system(TOOL_SYSTEM_PROMPT, tools=row["item"]["tools"]),
        Message.user("content"),
        Message.assistant("content"),
        Message.assistant(render_tool_call({}), metadata="name"),
        Message.observation("observation"),
        Message.assistant("content"),
    )
    expected = row["ids_official_indent4_reference"]
    ids = published.ids(render_chat(conversation))
    assert ids[:-1] == expected[: expected.index(2)]


def test_tools_get_a_system_message_where_there_is_none() -> None:
    user = Message.user("hi")
    assert offer_tools([user], [WEATHER]) == (
        Message.system(TOOL_SYSTEM_PROMPT, tools=[WEATHER]),
        user,
    )
    assert offer_tools([user], []) == (user,)


def test_tools_join_those_of_the_system_message() -> None:
    system = Message.system("You are terse.", tools=[{"name": "a"}])
    offered = offer_tools([system], [WEATHER.to_json(), {"name": "a"}])
    assert offered == (Message.system("You are terse.", tools=[{"name": "a"}, WEATHER]),)


def test_another_tool_of_the_same_name_is_refused() -> None:
    system = Message.system("", tools=[WEATHER])
    with pytest.raises(InvalidToolError, match="get_weather"):
        offer_tools([system], [ToolSpec("get_weather", "another")])


def test_a_ready_made_prompt_has_the_ids_that_it_was_decoded_from(published: Published) -> None:
    rows = [row for row in published.rows if "hf_decode" in row]
    assert rows
    for row in rows:
        segments = parse_ready_made(row["hf_decode"])
        assert segments is not None
        assert published.ids(segments) == row["ids"], row["source"]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("[gMASK]sop<|user|> \n 你好<|assistant|>", (S.USER, "\n", "你好", S.ASSISTANT)),
        ("[gMASK] sop\n<|user|>\nhi<|assistant|> \n", (S.USER, "\n", "hi", S.ASSISTANT, "\n")),
        ("[gMASK]sop<|user|>hi<|assistant|>", (S.USER, "\n", "hi", S.ASSISTANT)),
        (
            "[gMASK]sop<|user|> \n  a<|assistant|> \n b",
            (S.USER, "\n", " a", S.ASSISTANT, "\n", "b"),
        ),
        ("[gMASK]sop<|system|><|user|>", (S.SYSTEM, "\n", S.USER)),
        (
            "[gMASK]sop<|assistant|> get_weather\n ```python\ntool_call()\n```<|observation|> \n 5",
            (
                *(S.ASSISTANT, "get_weather\n", "```python\ntool_call()\n```"),
                *(S.OBSERVATION, "\n", "5"),
            ),
        ),
    ],
)
def test_a_ready_made_prompt_is_parsed_back(text: str, turns: tuple[Segment, ...]) -> None:
    assert parse_ready_made(text) == (S.GMASK, S.SOP, *turns)


def test_a_rendered_chat_survives_being_written_out() -> None:
    chat = render_chat(
        [Message.system("s\nt"), Message.user(" u "), Message.assistant("b", metadata="name")]
    )
    written = "".join(
        segment.value if isinstance(segment, SpecialToken) else f" {segment}" for segment in chat
    )
    assert parse_ready_made(written) == chat


@pytest.mark.parametrize(
    "text", ["", "你好", "[gMASK]sop", "[gMASK]sop hi<|user|>", "say [gMASK]sop<|user|>\nhi"]
)
def test_any_other_text_is_no_ready_made_prompt(text: str) -> None:
    assert parse_ready_made(text) is None
