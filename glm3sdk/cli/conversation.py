"""A conversation on a terminal, or over a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import click

from glm3sdk.cli.failures import error_line
from glm3sdk.cli.line_input import read_message
from glm3sdk.cli.screen import Screen, show_note
from glm3sdk.cli.slash_commands import run_command
from glm3sdk.domain.chat import Delta, Message, Reply, Role, ToolSpec
from glm3sdk.errors import Glm3Error, UserError

MAX_ROUNDS = 8
"""Most times that the calls of a reply are answered before the person's next turn."""

_History = tuple[Message, ...]
_Tools = tuple[ToolSpec, ...]


class Conversation:
    """Turns of a person and the model, until the person has enough.

    Args:
        answer: streams the answer to a history, with tools on offer.
        ask: shows a prompt and reads a line; EOFError and KeyboardInterrupt as `input`.
        history: what stands before the first turn.
        tools: what is on offer.
        answer_calls: calls those tools: gives a reply's history, of which so many messages
            were asked, with an observation behind each call; empty without calls. None: the
            person is asked what a called tool returned.
        attended: whether a person is there. Else an error or Ctrl-C ends the conversation,
            for what comes next belongs to what failed.
        note_of: what to tell a person of a reply besides the reply; None is nothing.

    Attributes:
        history: the conversation so far.
        tools: what is on offer.
        file: where it was last saved to or loaded from.
    """

    def __init__(
        self,
        *,
        answer: Callable[[_History, _Tools], Generator[Delta, None, None]],
        ask: Callable[[str], str],
        history: _History = (),
        tools: _Tools = (),
        answer_calls: Callable[[Reply, int], _History] | None = None,
        attended: bool = True,
        note_of: Callable[[Reply], str | None] = lambda _: None,
    ) -> None:
        self.history = history
        self.tools = tools
        self.file: str | None = None
        self._answer = answer
        self._ask = ask
        self._answer_calls = answer_calls
        self._attended = attended
        self._note_of = note_of
        self._unanswered: str | None = None

    def run(self, first: str | None = None) -> None:
        """Answer `first`, if any, then ask and answer until the end of input or /quit.

        Raises:
            KeyboardInterrupt: Ctrl-C came twice at the prompt, or nobody is there.
            Glm3Error: a turn failed, and nobody is there.
        """
        if first is not None:
            self._exchange(first)
        if self._attended:
            show_note("(Ctrl-C stops a reply; Ctrl-D or /quit ends; /help tells more)")
        with contextlib.suppress(EOFError):
            while True:
                self._take(self._asked("> "))

    def offer(self, tools: _Tools) -> None:
        """Offer these tools from here on, which nobody runs for the person."""
        self.tools, self._answer_calls = tools, None

    def begin(self, history: _History, *, file: str | None = None) -> None:
        """Go on from another history, which stands in a file."""
        self.history, self.file, self._unanswered = history, file, None

    def ask_again(self) -> None:
        """Answer the last message again; the old answer goes once there is a new one.

        Raises:
            UserError: nothing was asked yet.
        """
        if self._unanswered is not None:
            self._exchange(self._unanswered)
            return
        for index in reversed(range(len(self.history))):
            if self.history[index].role is Role.USER:
                self._exchange(self.history[index].content, since=index)
                return
        raise UserError("there is no message yet to ask again")

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            # A blank sends what would be a command.
            self._exchange(line.removeprefix(" ") if line.startswith(" /") else line)
            return
        try:
            run_command(self, line)
        except Glm3Error as exc:
            self._report(exc)

    def _exchange(self, text: str, since: int | None = None) -> None:
        """Answer a message after so many others, and the calls that follow from it."""
        before = self.history
        try:
            asked = (*before[:since], Message.user(text))
            rounds = 0
            while asked:
                reply = self._reply(asked, before)
                rounds += 1
                asked = self._observed(reply, len(asked), rounds) if reply else ()
        except Glm3Error as exc:
            self.history = before
            self._report(exc)
        # A message that is asked again is in the history already.
        self._unanswered = text if since is None and self.history is before else None

    def _reply(self, asked: _History, before: _History) -> Reply | None:
        """Show the answer; None if Ctrl-C stopped it."""
        screen = Screen()
        try:
            reply = screen.show_reply(self._answer(asked, self.tools))
        except KeyboardInterrupt:
            screen.interrupted()
            if not self._attended:
                raise
            # What was said stands; a message that got no answer was not asked.
            said = screen.said.strip()
            self.history = (*asked, Message.assistant(said)) if said else before
            show_note("(stopped)")
            return None
        except Glm3Error:
            screen.end_line()
            raise
        self.history = reply.history
        if note := self._note_of(reply):
            show_note(f"({note})")
        return reply

    def _observed(self, reply: Reply, asked: int, rounds: int) -> _History:
        """The reply's history with an observation behind each call; empty without calls."""
        if self._answer_calls is not None:
            return self._called(self._answer_calls, reply, asked) if rounds <= MAX_ROUNDS else ()
        offered = self.tools or reply.history[0].tools  # a file's system message may offer some
        if not offered or not any(message.metadata for message in reply.history[asked:]):
            return ()
        messages = list(reply.history[:asked])
        for message in reply.history[asked:]:
            messages.append(message)
            if message.metadata:
                messages.append(Message.observation(self._asked("observation> ")))
        return tuple(messages)

    def _called(
        self, answer_calls: Callable[[Reply, int], _History], reply: Reply, asked: int
    ) -> _History:
        try:
            return show_observations(answer_calls(reply, asked), asked)
        except KeyboardInterrupt:
            Screen().interrupted()
            if not self._attended:
                raise
            show_note("(stopped)")
            return ()

    def _asked(self, prompt: str) -> str:
        warned = False
        while True:
            try:
                text = read_message(self._ask, prompt)
            except KeyboardInterrupt:
                if warned or not self._attended:
                    raise
                warned = True
                show_note("(Ctrl-C again or Ctrl-D ends)")
                continue
            if text.strip() == "/quit":
                raise EOFError
            if text.strip():
                return text
            warned = False

    def _report(self, error: Glm3Error) -> None:
        if not self._attended:
            raise error
        click.echo(error_line(error), err=True)


def show_observations(messages: _History, start: int) -> _History:
    """Show what tools returned in the messages from `start` on; gives all messages back."""
    screen = Screen()
    for message in messages[start:]:
        if message.role is Role.OBSERVATION:
            screen.show_observation(message.content)
    return messages
