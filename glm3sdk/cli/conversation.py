"""A conversation on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import click

from glm3sdk.cli.failures import error_line
from glm3sdk.cli.screen import Screen
from glm3sdk.domain.chat import Delta, Message, Reply, Role
from glm3sdk.errors import Glm3Error

MAX_ROUNDS = 8
"""Most times that the calls of a reply are answered before the person's next turn."""

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
        answer_calls: calls tools instead: gives a reply's history, of which so many messages
            were asked, with an observation behind each call; empty without calls.
    """

    def __init__(
        self,
        *,
        answer: Callable[[_History], Generator[Delta, None, None]],
        ask: Callable[[str], str],
        history: _History = (),
        observes: bool = False,
        answer_calls: Callable[[Reply, int], _History] | None = None,
    ) -> None:
        self.history = history
        self._answer = answer
        self._ask = ask
        self._observes = observes
        self._answer_calls = answer_calls

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
            rounds = 0
            while asked:
                reply = self._reply(asked, before)
                rounds += 1
                asked = self._observed(reply, len(asked), rounds) if reply else ()
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

    def _observed(self, reply: Reply, asked: int, rounds: int) -> _History:
        """The reply's history with an observation behind each call; empty without calls."""
        if self._answer_calls is not None:
            return self._called(self._answer_calls, reply, asked) if rounds <= MAX_ROUNDS else ()
        if not self._observes or not any(message.metadata for message in reply.history[asked:]):
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
            _note("(stopped)")
            return ()

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


def show_observations(messages: _History, start: int) -> _History:
    """Show what tools returned in the messages from `start` on; gives all messages back."""
    screen = Screen()
    for message in messages[start:]:
        if message.role is Role.OBSERVATION:
            screen.show_observation(message.content)
    return messages


def _note(text: str) -> None:
    click.secho(text, dim=True, err=True)
