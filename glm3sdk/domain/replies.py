"""What the model wrote, read as it arrives: text for the reader, tool calls, code.

One incremental parser serves streams and whole replies, so both give the same parts. A
turn's first line is its metadata: a tool's name, `interpreter`, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from glm3sdk.domain.chat import (
    CodeCell,
    Delta,
    FinishReason,
    MalformedToolCall,
    Message,
    Part,
    Reply,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_calls import parse_tool_call, without_fence

INTERPRETER = "interpreter"
"""The metadata of a turn that holds code."""

# The published model writes the placeholder; its own demo shows the year.
_PLACEHOLDER, _SHOWN = "[[训练时间]]", "2023年"

_NAME = re.compile(r"[^\W\d][\w.\-]{0,63}")
_NAME_SO_FAR = re.compile(rf"{_NAME.pattern}\s*")
_FENCE = "```"
_CLOSING_FENCE = re.compile(r"^[ \t]*```|```\s*\Z", re.MULTILINE)
_CALL_STARTS: tuple[str, ...] = (_FENCE, "tool_call", "{")
_NAMELESS_STARTS: tuple[str, ...] = ("tool_call(",)


def is_tool_name(name: str) -> bool:
    """Whether a turn with this metadata can be read as a call."""
    return _NAME.fullmatch(name) is not None


class _Kind(Enum):
    TEXT = "text"
    CALL = "call"
    NAMELESS_CALL = "nameless call"


class ReplyParser:
    """Reads a reply in pieces of any size; the pieces do not change what it finds.

    Attributes:
        parts: what was read, complete after `finish`.
        turns: metadata and content of every turn as the model wrote them, one for each
            `next_turn` and one for `finish`.
    """

    def __init__(self) -> None:
        self.parts: tuple[Part, ...] = ()
        self.turns: tuple[tuple[str, str], ...] = ()
        self._calls = 0
        self._written: list[str] = []
        self._kind: _Kind | None = None
        self._shown = _ShownText()

    def feed(self, text: str) -> list[Delta]:
        """Take ordinary text of the current turn; return what can be told of it."""
        self._written.append(text)
        if self._kind is None:
            self._kind = _kind_of("".join(self._written))
            return self._opened() if self._kind else []
        return self._more(text)

    def next_turn(self) -> list[Delta]:
        """The model wrote `<|assistant|>`: the turn is complete and another begins."""
        deltas = self._close(complete=True)
        self._written, self._kind, self._shown = [], None, _ShownText()
        return deltas

    def finish(self, *, complete: bool = True) -> list[Delta]:
        """The reply is over.

        Args:
            complete: False where a limit cut it off; a call that cannot be read then says so.
        """
        return self._close(complete=complete)

    def _opened(self) -> list[Delta]:
        if self._kind is _Kind.TEXT:
            return self._more("".join(self._written))
        name, body = self._lines()
        return [ToolCallStart(self._calls, name), ToolCallDelta(self._calls, body)]

    def _more(self, text: str) -> list[Delta]:
        if self._kind is not _Kind.TEXT:
            return [ToolCallDelta(self._calls, text)] if text else []
        shown = self._shown.feed(text)
        return [TextDelta(shown)] if shown else []

    def _close(self, *, complete: bool) -> list[Delta]:
        deltas: list[Delta] = []
        if self._kind is None:
            self._kind = _Kind.TEXT
            deltas += self._opened()
        if self._kind is _Kind.TEXT:
            if rest := self._shown.finish():
                deltas.append(TextDelta(rest))
            if self._shown.text:
                self.parts += (Text(self._shown.text),)
            self.turns += (("", "".join(self._written).strip()),)
            return deltas
        name, body = self._lines()
        part = _read_call(name, body, self._kind, "".join(self._written), complete)
        self.parts += (part,)
        self.turns += ((name, body.strip()),)
        self._calls += 1
        return [ToolCallEnd(self._calls - 1, part)]

    def _lines(self) -> tuple[str, str]:
        first, _, body = "".join(self._written).partition("\n")
        return first.strip(), body


def parse_reply(raw_text: str) -> Reply:
    """Read a whole reply. Never raises: a call that cannot be read is a `MalformedToolCall`.

    Args:
        raw_text: what a model wrote; `<|assistant|>` in it separates turns.

    Returns:
        The reply; its history holds its own turns, as assistant messages.
    """
    # Half a character cannot stand in a message.
    text = raw_text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    parser = ReplyParser()
    for position, turn in enumerate(text.split(SpecialToken.ASSISTANT.value)):
        if position:
            parser.next_turn()
        parser.feed(turn)
    parser.finish()
    history = tuple(
        Message.assistant(content, metadata=metadata) for metadata, content in parser.turns
    )
    return Reply(parser.parts, finish_reason(parser.parts), history=history)


def finish_reason(parts: Iterable[Part]) -> FinishReason:
    """Why a reply of these parts ended, if no limit cut it off."""
    called = any(isinstance(part, ToolCall | CodeCell) for part in parts)
    return FinishReason.TOOL_CALLS if called else FinishReason.STOP


def _kind_of(written: str) -> _Kind | None:
    """What a turn that begins with this text is; None while more text may decide it.

    What it says of a text holds for every longer text too.
    """
    line, newline, body = written.partition("\n")
    if newline:
        return _kind_of_lines(line.strip(), body.lstrip())
    head = line.lstrip()
    fenced = head.startswith(_FENCE) or _FENCE.startswith(head)
    return None if fenced or _NAME_SO_FAR.fullmatch(head) else _Kind.TEXT


def _kind_of_lines(name: str, body: str) -> _Kind | None:
    if name.startswith(_FENCE):
        starts, kind = _NAMELESS_STARTS, _Kind.NAMELESS_CALL
    elif not _NAME.fullmatch(name):
        return _Kind.TEXT
    elif name == INTERPRETER and body:
        return _Kind.CALL
    else:
        starts, kind = _CALL_STARTS, _Kind.CALL
    if body.startswith(starts):
        return kind
    return None if any(start.startswith(body) for start in starts) else _Kind.TEXT


def _read_call(
    name: str, body: str, kind: _Kind, raw: str, complete: bool
) -> ToolCall | CodeCell | MalformedToolCall:
    if kind is _Kind.NAMELESS_CALL:
        return MalformedToolCall(name, raw, "the line with the tool's name is missing")
    part = (
        _read_code(raw, body, complete)
        if name == INTERPRETER
        else parse_tool_call(name, body, raw=raw)
    )
    if isinstance(part, MalformedToolCall) and not complete:
        return MalformedToolCall(name, raw, f"the reply was cut off: {part.reason}")
    return part


def _read_code(raw: str, body: str, complete: bool) -> CodeCell | MalformedToolCall:
    inside = without_fence(body)
    if inside is None:
        return MalformedToolCall(INTERPRETER, raw, f"no code fence before {body.lstrip()!r:.40}")
    closing = _CLOSING_FENCE.search(inside)
    if closing is None and not complete:
        return MalformedToolCall(INTERPRETER, raw, "the code has no end")
    return CodeCell((inside[: closing.start()] if closing else inside).rstrip())


class _ShownText:
    """The text of a turn as a reader sees it: stripped, with the placeholder filled in."""

    def __init__(self) -> None:
        self.text = ""
        self._held = ""

    def feed(self, text: str) -> str:
        held = (self._held + text).replace(_PLACEHOLDER, _SHOWN)
        if not self.text:
            held = held.lstrip()
        shown = held[: len(held) - _partial_placeholder(held)]
        if shown == held:
            shown = held.rstrip()
        self._held = held[len(shown) :]
        self.text += shown
        return shown

    def finish(self) -> str:
        rest = self._held.rstrip()
        self._held = ""
        self.text += rest
        return rest


def _partial_placeholder(text: str) -> int:
    """How many characters at the end may be the beginning of the placeholder."""
    for length in range(len(_PLACEHOLDER) - 1, 0, -1):
        if text.endswith(_PLACEHOLDER[:length]):
            return length
    return 0
