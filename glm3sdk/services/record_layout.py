"""How the lines of one data file become training sequences."""

from __future__ import annotations

import attrs

from glm3sdk.config.schema import DataFormat, DataSettings
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
from glm3sdk.errors import InvalidDatasetError, InvalidMessageError, InvalidToolError
from glm3sdk.ports.line_source import Line
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.encoding import encode_message, encode_segments
from glm3sdk.services.examples import EOS_ID, Example, encode_training

# `[gMASK] sop` and one token of text.
_SHORTEST_SOURCE = 3


@attrs.frozen(kw_only=True)
class RecordLayout:
    """A format and its lengths; None is no limit.

    adgen is `[gMASK] sop`, source, target, `</s>` without role tokens, as the reference trains
    it; adgen-chat has the source in a user turn and the target in an assistant turn.

    Attributes:
        format: how a record becomes token ids.
        columns: for the adgen formats, the keys of source and target.
        max_source_length: for adgen, most tokens of prefix and source.
        max_target_length: for adgen, most tokens of the target.
        max_seq_length: for the other two, most tokens of a sequence.
    """

    format: DataFormat
    columns: tuple[str, str] = ("content", "summary")
    max_source_length: int | None = None
    max_target_length: int | None = None
    max_seq_length: int | None = None

    @property
    def seq_length(self) -> int | None:
        """Tokens of the longest sequence; for adgen source + target + 1 for `</s>`."""
        if self.format is not DataFormat.ADGEN:
            return self.max_seq_length
        if self.max_source_length is None or self.max_target_length is None:
            return None
        return self.max_source_length + self.max_target_length + 1

    def parse(self, line: Line) -> TextPair | Conversation | Dropped:
        """Read a line as a record, without a tokenizer."""
        if line.data is None:
            return Dropped(line.number, DropKind.LINE_TOO_LONG, f"{line.size} bytes")
        if self.format is DataFormat.MULTITURN:
            return parse_conversation(line.data, line=line.number)
        return parse_pair(line.data, line=line.number, columns=self.columns)


class RecordEncoder:
    """Encodes the records of one layout with one tokenizer.

    What opens a sequence and its turns is encoded once; texts are encoded on their own.
    """

    def __init__(self, layout: RecordLayout, tokenizer: Tokenizer) -> None:
        self._layout, self._tokenizer = layout, tokenizer
        self._opening = encode_segments(GENERATION_PREFIX, tokenizer)
        # The tokens between source and target: those that are given, those that are learned.
        self._given: list[int] = []
        self._learned: list[int] = []
        self._source_room: int | None = None
        if layout.format is DataFormat.ADGEN_CHAT:
            self._opening += encode_message(Message.user(""), tokenizer)
            role_id, *head = encode_message(Message.assistant(""), tokenizer)
            self._given, self._learned = [role_id], head
        elif layout.max_source_length is not None:
            self._source_room = layout.max_source_length - len(self._opening)

    def encode(self, line: Line) -> Example | Dropped:
        """Read a line as a training sequence, cut to the layout's lengths."""
        record = self._layout.parse(line)
        try:
            if isinstance(record, TextPair):
                return self._pair(record)
            if isinstance(record, Conversation):
                example = encode_training(record, self._tokenizer)
                return example.cut(self._layout.max_seq_length)
        except (InvalidMessageError, InvalidToolError) as exc:
            return Dropped(line.number, DropKind.UNREADABLE_MESSAGE, str(exc))
        return record

    def _pair(self, pair: TextPair) -> Example:
        source, target = self._tokenizer.encode(pair.source), self._tokenizer.encode(pair.target)
        kept_source = source[: self._source_room]
        kept_target = target[: self._layout.max_target_length]
        given = [*self._opening, *kept_source, *self._given]
        input_ids = (*given, *self._learned, *kept_target, EOS_ID)
        cut_off = len(source) + len(target) - len(kept_source) - len(kept_target)
        example = Example(input_ids, ((len(given), len(input_ids)),), cut_off)
        return example.cut(self._layout.max_seq_length)


def training_layout(settings: DataSettings, *, seq_length: int | None = None) -> RecordLayout:
    """The layout that a run trains on: every length is known.

    Args:
        settings: the data file's settings.
        seq_length: the run's sequence length, if it names one.

    Raises:
        InvalidDatasetError: a length is missing, too small, or not what the run has.
    """
    if settings.format is not DataFormat.ADGEN:
        length = seq_length if settings.max_seq_length is None else settings.max_seq_length
        layout = RecordLayout(
            format=settings.format, columns=settings.columns, max_seq_length=length
        )
        _require(settings.path, "max_seq_length", length, _SHORTEST_SOURCE + 1)
        if seq_length is not None and seq_length != length:
            raise InvalidDatasetError(
                f"{settings.path}: seq_length {seq_length} is not max_seq_length {length}; "
                "set both to the same number"
            )
        return layout
    source, target = settings.max_source_length, settings.max_target_length
    _require(settings.path, "max_source_length", source, _SHORTEST_SOURCE)
    _require(settings.path, "max_target_length", target, 1)
    layout = RecordLayout(
        format=settings.format,
        columns=settings.columns,
        max_source_length=source,
        max_target_length=target,
    )
    if settings.pack:
        raise InvalidDatasetError(
            f"{settings.path}: format adgen has no roles that part packed records; "
            "set pack to false, or format to adgen-chat"
        )
    if seq_length is not None and seq_length != layout.seq_length:
        raise InvalidDatasetError(
            f"{settings.path}: seq_length {seq_length} is not max_source_length {source} + "
            f"max_target_length {target} + 1 = {layout.seq_length}; change one of the three"
        )
    return layout


def _require(path: str, name: str, value: int | None, least: int) -> None:
    if value is None or value < least:
        given = "is not set" if value is None else f"is {value}"
        raise InvalidDatasetError(f"{path}: {name} {given}; set it to {least} or more")
