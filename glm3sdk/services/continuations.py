"""The lines of a data file as what a model is to go on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from glm3sdk.config.schema import DataFormat
from glm3sdk.domain.chat import Message
from glm3sdk.domain.dataset import (
    Conversation,
    DropKind,
    Dropped,
    TextPair,
    parse_conversation,
    parse_pair,
)
from glm3sdk.domain.prompt import GENERATION_PREFIX
from glm3sdk.ports.line_source import Line
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.encoding import encode_segments
from glm3sdk.services.prediction import Record
from glm3sdk.services.record_layout import RecordLayout


@attrs.frozen
class PromptLine:
    """A line of a file of prompts.

    Attributes:
        fields: all that stands on the line.
        prompt: the text or the conversation to go on with.
    """

    fields: Mapping[str, Any]
    prompt: str | tuple[Message, ...]


class RecordReader:
    """Reads the lines of a data file as what a model is to continue.

    Args:
        layout: how the file's records were trained; a raw source is cut as in training.
        tokenizer: the model's tokenizer, in whose tokens that is.
    """

    def __init__(self, layout: RecordLayout, tokenizer: Tokenizer) -> None:
        self._layout, self._tokenizer = layout, tokenizer
        self._source_room: int | None = None
        if layout.format is DataFormat.ADGEN and layout.max_source_length is not None:
            opening = encode_segments(GENERATION_PREFIX, tokenizer)
            self._source_room = layout.max_source_length - len(opening)

    def records(self, line: Line) -> list[Record] | Dropped:
        """The continuations of one line: every trained turn, after the turns that precede it."""
        parsed = self._layout.parse(line)
        if isinstance(parsed, TextPair):
            source, target = self._prompt(parsed.source), parsed.target
            if isinstance(source, str):
                return [(source, target)]
            return [(source, Message.assistant(target))]
        if isinstance(parsed, Conversation):
            messages = tuple(entry.message for entry in parsed.messages)
            return [
                (messages[:place], messages[place])
                for place, entry in enumerate(parsed.messages)
                if entry.trained and place
            ]
        return parsed

    def prompt(self, line: Line) -> PromptLine | Dropped:
        """Read `{"prompt": ...}`, `{"messages": [...]}` or a pair, which needs no target."""
        if line.data is None:
            return Dropped(line.number, DropKind.LINE_TOO_LONG, f"{line.size} bytes")
        source = self._layout.columns[0]
        plain = _field(line, "prompt")
        if isinstance(plain, Dropped) and plain.kind is not DropKind.MISSING_KEY:
            return plain
        fields: dict[str, Any] = json.loads(line.data.decode("utf-8-sig"))
        if isinstance(plain, str):
            return PromptLine(fields, plain)
        if "messages" in fields:
            conversation = parse_conversation(line.data, line=line.number)
            if isinstance(conversation, Dropped):
                return conversation
            return PromptLine(fields, tuple(entry.message for entry in conversation.messages))
        if source not in fields:
            known = f"'prompt', 'messages' or {source!r}"
            return Dropped(line.number, DropKind.MISSING_KEY, known)
        text = _field(line, source)
        return text if isinstance(text, Dropped) else PromptLine(fields, self._prompt(text))

    def _prompt(self, source: str) -> str | tuple[Message, ...]:
        if self._layout.format is DataFormat.ADGEN_CHAT:
            return (Message.user(source),)
        if self._source_room is None:
            return source
        return cut_text(source, self._tokenizer, self._source_room)


def cut_text(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The beginning of a text that has its first `most` tokens.

    Fewer where these end within a character, for half of one is no text.
    """
    input_ids = tokenizer.encode(text)
    if len(input_ids) <= most:
        return text
    for length in range(most, 0, -1):
        beginning = tokenizer.decode(input_ids[:length])
        if tokenizer.encode(beginning) == input_ids[:length]:
            return beginning
    return ""


def _field(line: Line, key: str) -> str | Dropped:
    assert line.data is not None  # noqa: S101  # its caller looked
    pair = parse_pair(line.data, line=line.number, columns=(key, key))
    return pair if isinstance(pair, Dropped) else pair.source
