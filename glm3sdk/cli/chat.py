"""`glm3 chat`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from glm3sdk.cli.completing import complete_tool
from glm3sdk.cli.constraints import constraint_options, naming, read_constraint
from glm3sdk.cli.generation import generation_config, generation_options, usage_json
from glm3sdk.cli.input import read_stdin, stdin_is_terminal
from glm3sdk.cli.loading import Loaders, loaded_service, model_options
from glm3sdk.cli.screen import Screen, cut_note
from glm3sdk.domain.chat import CodeCell, MalformedToolCall, Message, Reply, ToolCall, ToolSpec
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.errors import InvalidMessageError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from glm3sdk.domain.chat import Delta
    from glm3sdk.domain.generation import GenerationConfig
    from glm3sdk.domain.tool_functions import Tool
    from glm3sdk.services.chat import Glm3Service


@click.command()
@click.argument("message", metavar="[MSG]", required=False)
@click.option("--system", metavar="TEXT", help="A system message that opens the conversation.")
@click.option(
    "--tools",
    "tools_file",
    type=click.Path(),
    metavar="FILE",
    help="A JSON list of tools to offer.",
)
@click.option(
    "--tool",
    "tool_names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_tool,
    help="A tool to call for the model: interpreter, or a plugin's (see `glm3 plugins`).",
)
@click.option(
    "--history",
    "history_file",
    type=click.Path(),
    metavar="FILE",
    help="Go on with a conversation that /save wrote, or with a JSON list of messages.",
)
@click.option(
    "--interactive",
    is_flag=True,
    help="Go on after MSG, where there is a terminal. Without MSG, take each line of standard "
    "input as a turn.",
)
@model_options
@generation_options
@constraint_options
@click.option("--json", "as_json", is_flag=True, help="Print the reply as one JSON object.")
@click.make_pass_decorator(Loaders, ensure=True)
def chat(
    loaders: Loaders,
    /,
    *,
    message: str | None,
    system: str | None,
    tools_file: str | None,
    tool_names: tuple[str, ...],
    history_file: str | None,
    interactive: bool,
    as_json: bool,
    model: str,
    runtime: str | None,
    max_seq_length: int | None,
    **generation: Any,
) -> None:
    r"""Answer MSG, or talk.

    Without MSG it converses on a terminal, and elsewhere answers what standard input says.
    Ctrl-C stops a reply, Ctrl-D or /quit ends the conversation, and /help tells of /system,
    /tools, /save, /load, /retry and /clear. A line that ends in \ goes on in the next one.

    --tools only describes tools: in a conversation you are asked what they return. --tool runs
    them; `interpreter` runs Python code that the model writes.

    \b
    Examples:
      glm3 chat
      glm3 chat 你好 --model /models/chatglm3-6b --seed 7 --json
      glm3 chat 继续 --history talk.json
      printf '你好\n/save talk.json\n' | glm3 chat --interactive
    """
    attended = stdin_is_terminal()
    converses = (attended or interactive) if message is None else (attended and interactive)
    if converses and as_json:
        raise click.UsageError("--json answers once: pass MSG and leave out --interactive")
    if tools_file and tool_names:
        raise click.UsageError("--tools describes tools and --tool runs them: pass one of the two")
    file = generation["json_schema"] or generation["grammar"]
    options = read_constraint(generation)
    config = generation_config(max_seq_length=max_seq_length, **options)
    known = _load_tools(tool_names)
    history, tools = _beginning(system, history_file)
    if tools_file is not None:
        from glm3sdk.cli.conversation_file import read_tools_file

        tools = read_tools_file(tools_file)
    if known:
        tools = tuple(each.spec for each in known.values())
    if message is None and not converses:
        message = read_stdin()
    if message is not None:
        _check(message)
    with (
        naming(file),
        loaded_service(
            loaders, model=model, runtime=runtime, max_seq_length=max_seq_length
        ) as service,
    ):
        if converses:
            _converse(
                service,
                message,
                history,
                config,
                tools,
                known=known,
                file=history_file,
                constraint_file=file,
                attended=attended,
            )
            return
        asked = (*history, Message.user(message or ""))
        if as_json:
            reply = (
                service.run_tools(asked, [*known.values()], config)
                if known
                else service.chat(asked, config, tools or None)
            )
            click.echo(json.dumps(_reply_json(reply), ensure_ascii=False))
            return
        screen = Screen()
        try:
            if known:
                reply = _show_with_tools(service, screen, asked, config, known)
            else:
                reply = screen.show_reply(service.stream_chat(asked, config, tools or None))
        except KeyboardInterrupt:
            screen.interrupted()
            raise
        if note := cut_note(reply, config):
            click.echo(note, err=True)


def _beginning(
    system: str | None, history_file: str | None
) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """The messages that stand before the first turn, and the tools that they offer."""
    if history_file is None:
        return (() if system is None else (Message.system(system),)), ()
    if system is not None:
        raise click.UsageError("a conversation has one system message: leave out --system")
    from glm3sdk.cli.conversation_file import read_conversation

    return read_conversation(history_file)


def _check(message: str) -> None:
    """Refuse a message before a model is loaded for it."""
    if not message.strip():
        raise InvalidMessageError("the message is empty; pass MSG or write it to standard input")
    Message.user(message)


def _load_tools(names: tuple[str, ...]) -> dict[str, Tool]:
    """The tools of plugins, by the names that the model calls."""
    if not names:
        return {}
    from glm3sdk.bootstrap.tools import load_tools
    from glm3sdk.services.tool_loop import tools_by_name

    return tools_by_name(load_tools(names))


def _show_with_tools(
    service: Glm3Service,
    screen: Screen,
    asked: tuple[Message, ...],
    config: GenerationConfig,
    known: Mapping[str, Tool],
) -> Reply:
    """Show replies and what tools return, until the model calls none."""
    from glm3sdk.cli.conversation import MAX_ROUNDS, show_observations
    from glm3sdk.services.tool_loop import run_tools

    shown = len(asked)

    def chat(history: Any, config: GenerationConfig | None, tools: Any) -> Reply:
        nonlocal shown
        show_observations(history, shown)
        shown = len(history)
        return screen.show_reply(service.stream_chat(history, config, tools))

    return run_tools(chat, asked, [*known.values()], config=config, max_rounds=MAX_ROUNDS)


def _converse(
    service: Glm3Service,
    first: str | None,
    history: tuple[Message, ...],
    config: GenerationConfig,
    tools: tuple[ToolSpec, ...],
    *,
    known: Mapping[str, Tool],
    file: str | None,
    constraint_file: str | None,
    attended: bool,
) -> None:
    from glm3sdk.cli.conversation import Conversation
    from glm3sdk.cli.line_input import ask, next_line
    from glm3sdk.services.tool_loop import answer_calls

    def answer(
        asked: tuple[Message, ...], tools: tuple[ToolSpec, ...]
    ) -> Generator[Delta, None, None]:
        with naming(constraint_file):
            yield from service.stream_chat(asked, config, tools or None)

    conversation = Conversation(
        answer=answer,
        ask=ask if attended else next_line,
        tools=tools,
        answer_calls=(lambda reply, asked: answer_calls(reply, asked, known)) if known else None,
        attended=attended,
        note_of=lambda reply: cut_note(reply, config),
    )
    conversation.begin(history, file=file)
    conversation.run(first)


def _reply_json(reply: Reply) -> dict[str, Any]:
    values: dict[str, Any] = {
        "content": reply.content,
        "tool_calls": [
            _call_json(part) for part in reply.parts if isinstance(part, ToolCall | CodeCell)
        ],
        "finish_reason": str(reply.finish_reason),
        "usage": usage_json(reply.usage),
    }
    if reply.incomplete is not None:
        values["incomplete"] = {
            "raw": reply.incomplete.raw,
            "reason": str(reply.incomplete.reason),
        }
    unreadable = [part for part in reply.parts if isinstance(part, MalformedToolCall)]
    if unreadable:
        values["malformed_tool_calls"] = [
            {"name": part.name, "raw": part.raw, "reason": part.reason} for part in unreadable
        ]
    return values


def _call_json(call: ToolCall | CodeCell) -> dict[str, Any]:
    if isinstance(call, CodeCell):
        return {"name": INTERPRETER, "arguments": {"code": call.code}, "repair": None}
    return {"name": call.name, "arguments": dict(call.arguments), "repair": call.repair}
