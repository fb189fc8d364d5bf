"""ToolAlpaca's published training data as training conversations.

The source (Tang et al. 2023) is a list of tools, each with its documentation and instances
of its use; the result is what ChatGLM3's own formatting script makes of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from glm3sdk.domain.dataset import Dropped, parse_conversation


@attrs.frozen
class DroppedInstance:
    """An instance that does not become a conversation.

    Attributes:
        tool: the tool's name, or its place in the list.
        instance: the instance's place in the tool's list, or None if that is missing.
        reason: why.
    """

    tool: str
    instance: int | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.instance is None else f", instance {self.instance}"
        return f"{self.tool}{where}: {self.reason}"


@attrs.frozen
class FormattedConversation:
    """A conversation as one line of JSON, without the line's end."""

    line: bytes
    turns: int


@attrs.frozen
class FormatReport:
    """What became of the instances.

    Attributes:
        taken: conversations written.
        dropped: instances left out.
        turns: conversations by their number of turns.
    """

    taken: int
    dropped: tuple[DroppedInstance, ...]
    turns: Mapping[int, int]


class FormatTally:
    """Counts what `format_tool_alpaca` yields."""

    def __init__(self) -> None:
        self._turns: Counter[int] = Counter()
        self._dropped: list[DroppedInstance] = []

    def taken(
        self, items: Iterable[FormattedConversation | DroppedInstance]
    ) -> Iterator[FormattedConversation]:
        """Pass conversations on and keep the rest."""
        for item in items:
            if isinstance(item, DroppedInstance):
                self._dropped.append(item)
            else:
                self._turns[item.turns] += 1
                yield item

    def report(self) -> FormatReport:
        """What was counted so far."""
        turns = dict(sorted(self._turns.items()))
        return FormatReport(sum(turns.values()), tuple(self._dropped), turns)


def format_tool_alpaca(tools: Iterable[Any]) -> Iterator[FormattedConversation | DroppedInstance]:
    """Turn each instance of each tool into a conversation, or say why not.

    Args:
        tools: the values of ToolAlpaca's JSON list.
    """
    for number, tool in enumerate(tools):
        name = f"tool {number}"
        try:
            if isinstance(tool["Name"], str):
                name = tool["Name"]
            documentation, instances = tool["NLDocumentation"], tool["Instances"]
            if not isinstance(documentation, str) or not isinstance(instances, list):
                raise TypeError("NLDocumentation must be text and Instances a list")
        except (KeyError, TypeError) as exc:
            yield DroppedInstance(name, None, _why(exc))
            continue
        for index, instance in enumerate(instances):
            try:
                turns = list(_turns(instance))
                record = {"tools": [documentation], "conversations": turns}
                line = json.dumps(record, ensure_ascii=False).encode("utf-8")
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
                yield DroppedInstance(name, index, _why(exc))
                continue
            # What training could not read must not be written either.
            parsed = parse_conversation(line, line=0)
            if isinstance(parsed, Dropped):
                yield DroppedInstance(name, index, parsed.reason)
            else:
                yield FormattedConversation(line, len(turns))


def _turns(instance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "user", "content": instance["input"]}
    for (action, arguments, thought), observation in instance["intermediate_steps"]:
        yield {"role": "assistant", "content": thought.split("Action:")[0].strip()}
        try:
            parameters = json.loads(arguments)
        except ValueError as exc:
            raise ValueError(f"the arguments of {action!r} are not JSON: {exc}") from exc
        yield {
            "role": "tool",
            "name": action,
            "parameters": parameters,
            "observation": observation,
        }
    yield {
        "role": "assistant",
        "content": instance["Final Thought"] + "\n" + instance["output"],
    }


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"missing key: {error}"
    if isinstance(error, UnicodeEncodeError):
        return f"it holds {error.object[error.start]!r}, half of a character"
    return f"{error}" or type(error).__name__
