"""Conversations as files: one JSON object on one line, in OpenAI's words.

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}

It is a line of training data too, and of the input of `glm3 generate --input`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glm3sdk.cli.input import read_json, read_json_list
from glm3sdk.domain.chat import Message, ToolSpec
from glm3sdk.domain.history import read_history, read_tools
from glm3sdk.errors import InvalidMessageError, InvalidToolError, UserError


def read_conversation(path: str) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """Read a conversation, as this module writes it or as a bare list of messages.

    Raises:
        UserError: the file cannot be read or holds neither; the message names the file.
    """
    value = read_json(path)
    described: Any = []
    if isinstance(value, Mapping):
        described = value.get("tools") or []
        value = value.get("messages")
    if not isinstance(value, list):
        raise UserError(
            f'{path}: no conversation; expected {{"messages": [...]}} or a list of messages'
        )
    try:
        return read_history(value), read_tools(described)
    except (InvalidMessageError, InvalidToolError) as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def read_tools_file(path: str) -> tuple[ToolSpec, ...]:
    """Read a JSON list of tools.

    Raises:
        UserError: the file cannot be read or holds none; the message names the file.
    """
    try:
        return read_tools(read_json_list(path, "tools"))
    except InvalidToolError as exc:
        raise InvalidToolError(f"{path}: {exc}") from exc


def write_conversation(
    path: str, history: Sequence[Message], tools: Sequence[ToolSpec], *, replace: bool
) -> None:
    """Write a conversation and the tools that it offers; the file appears whole.

    Args:
        path: the file.
        history: the messages.
        tools: what is offered.
        replace: whether a file of that name may be replaced.

    Raises:
        UserError: there is a file already, or none can be written there.
    """
    from glm3sdk.adapters.storage.whole_file import whole_file

    file = Path(path)
    if not replace and (file.is_symlink() or file.exists()):
        raise UserError(f"{path} is there already, and stays as it is; save under another name")
    values: dict[str, Any] = {"messages": [_json(message) for message in history]}
    if tools:
        values["tools"] = [each.to_json() for each in tools]
    with whole_file(file) as target:
        target.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")


def _json(message: Message) -> dict[str, Any]:
    values: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.metadata:
        values["metadata"] = message.metadata
    if message.tools:
        values["tools"] = [
            each.to_json() if isinstance(each, ToolSpec) else each for each in message.tools
        ]
    return values
