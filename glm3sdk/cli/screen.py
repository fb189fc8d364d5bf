"""Shows a reply while it is written."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from glm3sdk.domain.chat import (
    CodeCell,
    Completion,
    CompletionEnd,
    FinishReason,
    MalformedToolCall,
    Reply,
    ReplyEnd,
    ToolCall,
    ToolCallEnd,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from glm3sdk.domain.chat import Delta, TextDelta
    from glm3sdk.domain.generation import GenerationConfig

# What a model writes must not steer the terminal: ESC and its like are shown, not obeyed.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


class Screen:
    """Shows one reply; styled on a terminal, and there safe from control characters.

    Attributes:
        said: the text of the reply so far.
    """

    def __init__(self) -> None:
        self.said = ""
        self._terminal = sys.stdout.isatty()
        self._line_open = False

    def show_reply(self, events: Generator[Delta, None, None]) -> Reply:
        """Show a reply's events; returns the reply."""
        with closing(events):
            for event in events:
                self.said += event.content
                self._write(event.content)
                if isinstance(event, ToolCallEnd):
                    self.end_line()
                    self._write_call(call_line(event.part))
                elif isinstance(event, ReplyEnd):
                    self.end_line()
                    return event.reply
        raise AssertionError("a stream ends with a ReplyEnd")

    def show_completion(
        self, events: Generator[TextDelta | CompletionEnd, None, None]
    ) -> Completion:
        """Show a raw completion's events; returns the completion."""
        with closing(events):
            for event in events:
                self._write(event.content)
                if isinstance(event, CompletionEnd):
                    self._line_open = True
                    self.end_line()
                    return event.completion
        raise AssertionError("a stream ends with a CompletionEnd")

    def show_observation(self, text: str) -> None:
        """Show what a tool that was called returned."""
        self.end_line()
        self._write_call(f"← {text.rstrip()}")

    def end_line(self) -> None:
        """Begin a new line unless the last one ended."""
        if self._line_open:
            self._write("\n")

    def interrupted(self) -> None:
        """Begin a new line behind the ^C that a terminal shows."""
        self._line_open = self._line_open or self._terminal
        self.end_line()

    def _write(self, text: str) -> None:
        if not text:
            return
        self._line_open = not text.endswith("\n")
        sys.stdout.write(text.translate(_PICTURES) if self._terminal else text)
        sys.stdout.flush()

    def _write_call(self, line: str) -> None:
        if not self._terminal:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            return
        from rich.console import Console
        from rich.text import Text

        text = Text(line.translate(_PICTURES), style="cyan")
        Console(file=sys.stdout).print(text, soft_wrap=True)


def call_line(call: ToolCall | CodeCell | MalformedToolCall) -> str:
    """A tool call as a person reads it."""
    if isinstance(call, ToolCall):
        arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        return f"→ {call.name}({arguments})"
    if isinstance(call, CodeCell):
        return f"→ interpreter\n{call.code}"
    return f"→ a call that cannot be read ({call.reason}): {call.raw!r}"


def show_note(text: str) -> None:
    """Tell a person something beside the conversation."""
    click.secho(text, dim=True, err=True)


def cut_note(reply: Reply, config: GenerationConfig) -> str | None:
    """Why a reply is not whole, in words; None where it is."""
    if reply.finish_reason is FinishReason.LENGTH:
        limit = config.max_new_tokens
        own = limit is not None and reply.usage.completion_tokens >= limit
        option = "--max-new-tokens" if own else "--max-seq-length"
        return f"the reply is incomplete: the limit of tokens came first; raise {option}"
    if reply.incomplete is not None:
        return "the reply is incomplete: a stop string came first"
    return None
