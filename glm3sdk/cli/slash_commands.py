"""What a person can type in a conversation besides messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from glm3sdk.cli.conversation_file import read_conversation, read_tools_file, write_conversation
from glm3sdk.cli.screen import show_note
from glm3sdk.domain.chat import Message, Role
from glm3sdk.errors import UserError, unknown_name

if TYPE_CHECKING:
    from glm3sdk.cli.conversation import Conversation

_OFF = "off"


@attrs.frozen
class _Command:
    """A command: what follows its name, what it does, and the function that does it."""

    argument: str
    help: str
    run: Callable[[Conversation, str], None]


def run_command(conversation: Conversation, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        EOFError: it ends the conversation.
        UserError: there is no such command, or it cannot be done.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        unknown = unknown_name("command", name, COMMANDS)
        raise UserError(f"{unknown} (a message that begins with / is sent with a blank before it)")
    command = COMMANDS[name]
    if argument and not command.argument:
        raise UserError(f"{name} stands alone, without {argument.strip()!r:.80}")
    command.run(conversation, argument.strip())


def _help(_: Conversation, __: str) -> None:
    for name, command in COMMANDS.items():
        show_note(f"{f'{name} {command.argument}':18}{command.help}")
    show_note('A line that ends in \\ goes on, and lines between """ and """ are one message.')
    show_note("Ctrl-C stops a reply; Ctrl-D ends.")


def _system(conversation: Conversation, text: str) -> None:
    history = conversation.history
    opening = history[0] if history and history[0].role is Role.SYSTEM else None
    if not text:
        show_note("no system message" if opening is None else f"system: {opening.content}")
        return
    turns = history if opening is None else history[1:]
    if text == _OFF:
        conversation.history = turns
        show_note("no system message from here on")
        return
    message = Message.system(text, tools=() if opening is None else opening.tools)
    conversation.history = (message, *turns)
    show_note("the system message is set")


def _tools(conversation: Conversation, argument: str) -> None:
    if argument == _OFF:
        conversation.offer(())
    elif argument:
        conversation.offer(read_tools_file(os.path.expanduser(argument)))
    names = ", ".join(each.name for each in conversation.tools)
    show_note(f"tools: {names}" if names else "no tools")


def _save(conversation: Conversation, argument: str) -> None:
    file = os.path.expanduser(argument) or conversation.file
    if file is None:
        raise UserError("/save needs the name of a file, such as /save talk.json")
    own = conversation.file is not None and os.path.realpath(file) == os.path.realpath(
        conversation.file
    )
    write_conversation(file, conversation.history, conversation.tools, replace=own)
    conversation.file = file
    show_note(f"saved {_messages(len(conversation.history))} to {file}")


def _load(conversation: Conversation, argument: str) -> None:
    if not argument:
        raise UserError("/load needs the name of a file, such as /load talk.json")
    file = os.path.expanduser(argument)
    history, tools = read_conversation(file)
    conversation.begin(history, file=file)
    if tools:
        conversation.offer(tools)
    show_note(f"loaded {_messages(len(history))} from {file}")
    if history and history[-1].role is Role.USER:
        show_note("the last message has no answer yet: /retry asks it")


def _retry(conversation: Conversation, _: str) -> None:
    conversation.ask_again()


def _clear(conversation: Conversation, _: str) -> None:
    history = conversation.history
    conversation.begin(history[:1] if history and history[0].role is Role.SYSTEM else ())
    show_note("the conversation begins anew")


def _quit(_: Conversation, __: str) -> None:
    raise EOFError


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"


COMMANDS = {
    "/help": _Command("", "show this", _help),
    "/system": _Command("[TEXT]", "set the system message, or show it; off removes it", _system),
    "/tools": _Command("[FILE]", "offer the tools of a JSON list, or show them; off", _tools),
    "/save": _Command("[FILE]", "write the conversation; again to the same file", _save),
    "/load": _Command("FILE", "go on with a conversation that was saved", _load),
    "/retry": _Command("", "answer the last message again", _retry),
    "/clear": _Command("", "forget the conversation, but not the system message", _clear),
    "/quit": _Command("", "end", _quit),
}
"""Every command by its name."""
