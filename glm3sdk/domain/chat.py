"""The values of a conversation: messages, replies, the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, ClassVar

import attrs

from glm3sdk.errors import InvalidMessageError, InvalidToolError


class Role(Enum):
    """Who speaks; each role opens with the special token of its name."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    OBSERVATION = "observation"


@attrs.frozen
class ToolSpec:
    """A tool that the model may call.

    Attributes:
        name: what the model writes as the metadata of its call.
        description: what the tool does, in words for the model.
        parameters: JSON Schema of the keyword arguments.

    Raises:
        InvalidToolError: no name, or something that is not JSON.
    """

    name: str = attrs.field()
    description: str = ""
    parameters: Mapping[str, Any] = attrs.field(factory=dict, hash=False)

    @name.validator
    def _check_name(self, _: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not value.strip() or "\n" in value:
            raise InvalidToolError(f"a tool needs a name of one line, not {value!r}")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.description, str):
            raise InvalidToolError(
                f"tool {self.name!r}: description must be text, not {self.description!r}"
            )
        if not isinstance(self.parameters, Mapping):
            raise InvalidToolError(
                f"tool {self.name!r}: parameters must be a JSON Schema object, "
                f"not {self.parameters!r}"
            )
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except (TypeError, ValueError) as exc:
            raise InvalidToolError(f"tool {self.name!r} is not JSON: {exc}") from exc

    def to_json(self) -> dict[str, Any]:
        """The object that stands in the system message."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }


@attrs.frozen
class TurnTokens:
    """The token ids behind a message that the model wrote.

    Text alone cannot continue exactly: `[30910, 13, 30910, 54622, 54591]` decodes to
    `你好`, which encodes to other ids. They count only while metadata and content are
    still the text that was decoded from them, and only for the tokenizer that made them.
    """

    input_ids: tuple[int, ...]
    metadata: str
    content: str
    tokenizer: str


@attrs.frozen
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        content: the text.
        metadata: the tool's name where an assistant message calls one; else empty.
        tools: tools offered by a system message: `ToolSpec`s or any JSON values.
        tokens: the ids that the model wrote, on messages that a service produced.
    """

    role: Role
    content: str = attrs.field()
    metadata: str = attrs.field(default="", kw_only=True)
    tools: tuple[Any, ...] = attrs.field(default=(), kw_only=True, converter=tuple, hash=False)
    tokens: TurnTokens | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)

    @content.validator
    def _check_content(self, _: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str):
            raise InvalidMessageError(f"content must be text, not {value!r:.80}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InvalidMessageError(
                f"content holds {value[exc.start]!r}, half of a character (a lone surrogate); "
                "decode the text with errors='replace'"
            ) from exc

    @metadata.validator
    def _check_metadata(self, _: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str) or "\n" in value:
            raise InvalidMessageError(f"metadata must be one line of text, not {value!r:.80}")
        if value and self.role is not Role.ASSISTANT:
            raise InvalidMessageError(f"only an assistant message has metadata, not {self.role}")

    @tools.validator
    def _check_tools(self, _: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
        if value and self.role is not Role.SYSTEM:
            raise InvalidMessageError(f"only a system message carries tools, not {self.role}")

    @classmethod
    def system(cls, content: str, *, tools: Sequence[Any] = ()) -> Message:
        """A system message, with the tools that it offers."""
        return cls(Role.SYSTEM, content, tools=tuple(tools))

    @classmethod
    def user(cls, content: str) -> Message:
        """What the person says."""
        return cls(Role.USER, content)

    @classmethod
    def assistant(cls, content: str, *, metadata: str = "") -> Message:
        """What the model says; metadata is the tool's name where it calls one."""
        return cls(Role.ASSISTANT, content, metadata=metadata)

    @classmethod
    def observation(cls, content: str) -> Message:
        """What a tool returned."""
        return cls(Role.OBSERVATION, content)


@attrs.frozen
class Text:
    """A part of a reply that is meant for the reader."""

    text: str


@attrs.frozen
class ToolCall:
    """A part of a reply that calls a tool.

    Attributes:
        name: the tool's name.
        arguments: keyword arguments as JSON values (a tuple is read as a list).
        repair: what had to be mended to read them, or None.
    """

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    repair: str | None = None


@attrs.frozen
class CodeCell:
    """A part of a reply that holds code for the code interpreter."""

    code: str


@attrs.frozen
class MalformedToolCall:
    """A part of a reply that meant to call a tool and cannot be read.

    Attributes:
        name: the first line as the model wrote it.
        raw: the turn's whole text.
        reason: why it cannot be read.
    """

    name: str
    raw: str
    reason: str


Part = Text | ToolCall | CodeCell | MalformedToolCall


class FinishReason(StrEnum):
    """Why a reply ended. Compares equal to its plain string."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@attrs.frozen
class Usage:
    """Tokens read and written.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated, the stop token included where there was one.
        cached_tokens: tokens of the prompt whose kv_cache was reused.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@attrs.frozen
class IncompleteStructure:
    """What a constraint asked for is not all there.

    Attributes:
        raw: what was written of it.
        reason: "length" where a limit came first, "stop" where a stop string did.
    """

    raw: str
    reason: FinishReason


@attrs.frozen
class Reply:
    """What the model answered.

    Attributes:
        parts: text, tool calls and code, in the order in which they were written.
        finish_reason: "stop", "length" or "tool_calls".
        usage: token counts.
        history: the conversation so far with this reply appended.
        incomplete: set where the reply ended before its constraint was met.
    """

    parts: tuple[Part, ...]
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    history: tuple[Message, ...] = ()
    incomplete: IncompleteStructure | None = None

    @property
    def content(self) -> str:
        """The text parts joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that could be read."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


@attrs.frozen
class Completion:
    """What the model wrote after a raw prompt.

    Attributes:
        text: what follows the prompt.
        finish_reason: "stop" or "length".
        usage: token counts.
        incomplete: set where the text ended before its constraint was met.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    incomplete: IncompleteStructure | None = None


@attrs.frozen
class TextDelta:
    """A stream's event: more text for the reader."""

    content: str


@attrs.frozen
class ToolCallStart:
    """A stream's event: the model opened turn number `index`, a call of `name`."""

    content: ClassVar[str] = ""
    index: int
    name: str


@attrs.frozen
class ToolCallDelta:
    """A stream's event: more of the call's raw body, as the model writes it."""

    content: ClassVar[str] = ""
    index: int
    raw: str


@attrs.frozen
class ToolCallEnd:
    """A stream's event: the call is complete and was read."""

    content: ClassVar[str] = ""
    index: int
    part: ToolCall | CodeCell | MalformedToolCall


@attrs.frozen
class ReplyEnd:
    """A stream's last event: the whole reply."""

    content: ClassVar[str] = ""
    reply: Reply


Delta = TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | ReplyEnd


@attrs.frozen
class CompletionEnd:
    """The last event of a raw completion's stream: the whole completion."""

    content: ClassVar[str] = ""
    completion: Completion
