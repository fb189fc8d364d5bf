"""One line of a data file as a training record, or the reason why it is none.

Two kinds of records: a pair of texts (AdvertiseGen's `{"content": ..., "summary": ...}`) and
a conversation (ToolAlpaca's `{"tools": [...], "conversations": [...]}`, or OpenAI's
`{"messages": [...], "tools": [...]}`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs

from glm3sdk.domain.chat import Message, Role
from glm3sdk.domain.history import read_history
from glm3sdk.domain.prompt import TOOL_SYSTEM_PROMPT, offer_tools
from glm3sdk.domain.tool_calls import render_tool_call
from glm3sdk.errors import InvalidMessageError, InvalidToolError

_TOOL_ROLE = "tool"
_CONVERSATION_ROLES = ("assistant", "observation", "system", _TOOL_ROLE, "user")
_MESSAGE_ROLES = (*_CONVERSATION_ROLES, "developer", "function")


class DropKind(StrEnum):
    """Why a line is not a record."""

    EMPTY_LINE = "empty line"
    LINE_TOO_LONG = "line too long"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    MISSING_KEY = "missing key"
    BLANK_VALUE = "blank value"
    WRONG_TYPE = "wrong type"
    UNKNOWN_ROLE = "unknown role"
    UNREADABLE_MESSAGE = "unreadable message"


@attrs.frozen
class Dropped:
    """A line that is not a record.

    Attributes:
        line: its number, from 1.
        kind: why, in words that can be counted.
        detail: the key or the value that is wrong.
    """

    line: int
    kind: DropKind
    detail: str = ""

    @property
    def reason(self) -> str:
        """Kind and detail."""
        return f"{self.kind}: {self.detail}" if self.detail else str(self.kind)


@attrs.frozen
class TextPair:
    """A source text and the target text that the model learns to write after it."""

    source: str
    target: str


@attrs.frozen
class TrainingMessage:
    """A message of a training conversation; `trained` if the model learns to write it."""

    message: Message
    trained: bool


@attrs.frozen
class Conversation:
    """A training conversation, a tool turn already split into call and observation."""

    messages: tuple[TrainingMessage, ...]

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Conversation:
        """A conversation whose assistant messages are all trained."""
        return cls(tuple(TrainingMessage(m, m.role is Role.ASSISTANT) for m in messages))


class _UnusableError(Exception):
    def __init__(self, kind: DropKind, detail: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def parse_pair(data: bytes, *, line: int, columns: tuple[str, str]) -> TextPair | Dropped:
    """Read a line as a pair of texts.

    Args:
        data: the line; a byte order mark at the file's start and its line end are allowed.
        line: its number, from 1.
        columns: the keys of source and target.
    """
    try:
        record = _json_object(data, line)
        return TextPair(_text(record, columns[0]), _text(record, columns[1]))
    except _UnusableError as exc:
        return Dropped(line, exc.kind, exc.detail)


def parse_conversation(data: bytes, *, line: int) -> Conversation | Dropped:
    """Read a line as a conversation with any tools that it offers.

    An assistant turn is trained unless it says `"loss": false` (or OpenAI's `"weight": 0`);
    no other turn ever is.

    Args:
        data: the line; a byte order mark at the file's start and its line end are allowed.
        line: its number, from 1.
    """
    try:
        return _conversation(_json_object(data, line))
    except _UnusableError as exc:
        return Dropped(line, exc.kind, exc.detail)
    except (InvalidMessageError, InvalidToolError) as exc:
        return Dropped(line, DropKind.UNREADABLE_MESSAGE, str(exc))


def _json_object(data: bytes, line: int) -> Mapping[str, Any]:
    try:
        text = data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as exc:
        raise _UnusableError(
            DropKind.NOT_UTF8, f"byte {data[exc.start]:#04x} at {exc.start}"
        ) from exc
    if not text.strip():
        raise _UnusableError(DropKind.EMPTY_LINE)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise _UnusableError(DropKind.NOT_JSON, f"{exc.msg} (column {exc.colno})") from exc
    except (ValueError, RecursionError) as exc:  # an endless integer, brackets without end
        raise _UnusableError(DropKind.NOT_JSON, f"{exc}") from exc
    if not isinstance(value, dict):
        raise _UnusableError(DropKind.WRONG_TYPE, f"a record is an object, not {value!r:.40}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        _required(record, key, key)
        raise _UnusableError(DropKind.WRONG_TYPE, f"{key!r} must be text, not {value!r:.40}")
    if not value.strip():
        raise _UnusableError(DropKind.BLANK_VALUE, repr(key))
    return value


def _required(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise _UnusableError(DropKind.MISSING_KEY, repr(where))
    return record[key]


def _conversation(record: Mapping[str, Any]) -> Conversation:
    if "conversations" in record:
        return _with_tools(record, _turns(_sequence(record, "conversations")))
    if "messages" in record:
        return _from_messages(record, _sequence(record, "messages"))
    raise _UnusableError(DropKind.MISSING_KEY, "'conversations' (or 'messages')")


def _sequence(record: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The turns under a key: objects with a role, at least one."""
    turns = record[key]
    if not isinstance(turns, list):
        raise _UnusableError(DropKind.WRONG_TYPE, f"{key!r} must be a list, not {turns!r:.40}")
    if not turns:
        raise _UnusableError(DropKind.BLANK_VALUE, repr(key))
    known = _MESSAGE_ROLES if key == "messages" else _CONVERSATION_ROLES
    for index, turn in enumerate(turns):
        where = f"{key}[{index}]"
        if not isinstance(turn, dict):
            raise _UnusableError(DropKind.WRONG_TYPE, f"{where} is no object: {turn!r:.40}")
        role = _required(turn, "role", f"{where}.role")
        if role not in known:
            names = ", ".join(sorted(known))
            raise _UnusableError(DropKind.UNKNOWN_ROLE, f"{where}: {role!r:.40} (known: {names})")
        if not isinstance(turn.get("loss", True), bool):
            raise _UnusableError(
                DropKind.WRONG_TYPE, f"{where}.loss must be true or false, not {turn['loss']!r:.40}"
            )
    return turns


def _turns(turns: Sequence[Mapping[str, Any]]) -> Iterator[TrainingMessage]:
    """ToolAlpaca's turns, in which a tool turn holds both the call and what came back."""
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if turn["role"] != _TOOL_ROLE:
            _required(turn, "content", f"{where}.content")
            (message,) = _history([turn], where)
            yield TrainingMessage(message, _is_trained(turn) and message.role is Role.ASSISTANT)
            continue
        name = _required(turn, "name", f"{where}.name")
        parameters = _required(turn, "parameters", f"{where}.parameters")
        observation = _required(turn, "observation", f"{where}.observation")
        if not isinstance(name, str) or not name.strip():
            raise _UnusableError(DropKind.WRONG_TYPE, f"{where}.name is no name: {name!r:.40}")
        if not isinstance(parameters, dict):
            raise _UnusableError(
                DropKind.WRONG_TYPE,
                f"{where}.parameters must be an object, not {parameters!r:.40}",
            )
        if not isinstance(observation, str):
            observation = json.dumps(observation, ensure_ascii=False)
        call = Message.assistant(render_tool_call(parameters), metadata=name)
        yield TrainingMessage(call, _is_trained(turn))
        yield TrainingMessage(Message.observation(observation), False)


def _history(turns: Sequence[Mapping[str, Any]], where: str) -> tuple[Message, ...]:
    # `read_history` speaks of index 0, for it is given one turn.
    if any("tool_calls" in turn or "function_call" in turn for turn in turns):
        raise _UnusableError(
            DropKind.WRONG_TYPE, f"{where}: tool_calls belong under 'messages', not here"
        )
    try:
        return read_history(turns)
    except InvalidMessageError as exc:
        raise InvalidMessageError(f"{where}: {str(exc).removeprefix('message 0: ')}") from exc


def _with_tools(record: Mapping[str, Any], turns: Iterable[TrainingMessage]) -> Conversation:
    """Offer ToolAlpaca's tools: any JSON values, on the system message that opens."""
    messages, tools = tuple(turns), _tools(record)
    if not tools:
        return Conversation(messages)
    opening = messages[0].message
    if opening.role is Role.SYSTEM:
        opening, messages = attrs.evolve(opening, tools=(*opening.tools, *tools)), messages[1:]
    else:
        opening = Message.system(TOOL_SYSTEM_PROMPT, tools=tools)
    return Conversation((TrainingMessage(opening, False), *messages))


def _from_messages(record: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> Conversation:
    # A tool's result may be moved behind its call; assistant messages keep their order.
    trained = iter(
        [
            _is_trained(turn)
            for turn in turns
            if turn["role"] == Role.ASSISTANT.value
            for message in read_history([turn])
        ]
        if any("loss" in turn or "weight" in turn for turn in turns)
        else []
    )
    messages = offer_tools(read_history(turns), _tools(record))
    return Conversation(
        tuple(
            TrainingMessage(message, message.role is Role.ASSISTANT and next(trained, True))
            for message in messages
        )
    )


def _tools(record: Mapping[str, Any]) -> Sequence[Any]:
    tools = record.get("tools")
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise _UnusableError(DropKind.WRONG_TYPE, f"'tools' must be a list, not {tools!r:.40}")
    return tools


def _is_trained(turn: Mapping[str, Any]) -> bool:
    return turn.get("loss", True) is True and turn.get("weight", 1) != 0
