"""A conversation on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import click

from glm3sdk.cli.failures import error_line
from glm3sdk.cli.screen import Screen
from glm3sdk.domain.chat import Delta, Message, Reply
from glm3sdk.errors import Glm3Error

_History = tuple[Message, ...]


def ask(prompt: str) -> str:
    """Read a line from the terminal, with line editing where Python has it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() uses it once it is imported
    return input(prompt)


class Conversation:
    """Turns of a person and the model, until the person has enough.

    Args:
        answer: streams the answer to a history.
        ask: shows a prompt and reads a line; EOFError and KeyboardInterrupt as `input`.
        history: what stands before the first turn.
        observes: whether the person is asked what a called tool returned.
    """

    def __init__(
        self,
        *,
        answer: Callable[[_History], Generator[Delta, None, None]],
        ask: Callable[[str], str],
        history: _History = (),
        observes: bool = False,
    ) -> None:
        self.history = history
        self._answer = answer
        self._ask = ask
        self._observes = observes

    def run(self, first: str | None = None) -> None:
        """Answer `first`, if any, then ask and answer until the end of input or /quit.

        Raises:
            KeyboardInterrupt: Ctrl-C came twice at the prompt.
        """
        if first is not None:
            self._exchange(first)
        _note("(Ctrl-C stops a reply; Ctrl-D or /quit ends)")
        with contextlib.suppress(EOFError):
            while True:
                self._exchange(self._asked("> "))

    def _exchange(self, text: str) -> None:
        """Answer a message, and the observations of the calls that follow from it."""
        before = self.history
        try:
            asked = (*before, Message.user(text))
            while asked:
                reply = self._reply(asked, before)
                asked = self._observed(reply, len(asked)) if reply else ()
        except Glm3Error as exc:
            self.history = before
            click.echo(error_line(exc), err=True)

    def _reply(self, asked: _History, before: _History) -> Reply | None:
        """Show the answer; None if Ctrl-C stopped it."""
        screen = Screen()
        try:
            reply = screen.show_reply(self._answer(asked))
        except KeyboardInterrupt:
            screen.interrupted()
            # What was said stands; a message that got no answer was not asked.
            said = screen.said.strip()
            self.history = (*asked, Message.assistant(said)) if said else before
            _note("(stopped)")
            return None
        except Glm3Error:
            screen.end_line()
            raise
        self.history = reply.history
        return reply

    def _observed(self, reply: Reply, asked: int) -> _History:
        """The reply's history with an observation behind each call; empty without calls."""
        if not self._observes or not any(message.metadata for message in reply.history[asked:]):
            return ()
        messages = list(reply.history[:asked])
        for message in reply.history[asked:]:
            messages.append(message)
            if message.metadata:
                messages.append(Message.observation(self._asked("observation> ")))
        return tuple(messages)

    def _asked(self, prompt: str) -> str:
        warned = False
        while True:
            try:
                line = self._ask(prompt)
            except EOFError:
                click.echo()
                raise
            except KeyboardInterrupt:
                click.echo()
                if warned:
                    raise
                warned = True
                _note("(Ctrl-C again or Ctrl-D ends)")
                continue
            if line.strip() == "/quit":
                raise EOFError
            if line.strip():
                return line
            warned = False


def _note(text: str) -> None:
    click.secho(text, dim=True, err=True)
