"""Chat, raw completions and tools over one loaded model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any

from glm3sdk.domain.chat import (
    Completion,
    CompletionEnd,
    Delta,
    Reply,
    ReplyEnd,
    TextDelta,
)
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.tool_functions import Tool
from glm3sdk.errors import InvalidTokenizerError
from glm3sdk.ports.constraint import ConstraintCompiler
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.async_chat import arun
from glm3sdk.services.preparation import History, Preparation, Tools
from glm3sdk.services.request import Event, Request, run
from glm3sdk.services.scheduler import Load, Scheduler
from glm3sdk.services.tool_loop import run_tools

# A longer kv_cache is allocated only when it is asked for: a 128k one is large.
_USUAL_LENGTH = 8192


class Glm3Service:
    """Answers chats with a loaded model. Safe to call from several threads at once.

        with Glm3Service(runtime=runtime, tokenizer=tokenizer) as service:
            reply = service.chat([Message.user("你好")])

    Args:
        runtime: the loaded model.
        tokenizer: the model's tokenizer.
        slots: sequences that are decoded side by side; further ones wait.
        max_seq_length: most tokens of prompt and reply together; by default what the
            model was made for, at most 8192.
        owns_runtime: whether `close` closes the runtime too.
        constraints: prepares what `tool_choice` and `constraint` hold a reply to; without
            it they are refused.
        fast_forward: whether tokens that a constraint forces are read at once, as a prompt
            is, rather than one by one. The text is the same.

    Raises:
        InvalidTokenizerError: the tokenizer has more ids than the model.
        SlotError: less than one slot, or a length that the model cannot hold.
    """

    def __init__(
        self,
        *,
        runtime: ModelRuntime,
        tokenizer: Tokenizer,
        slots: int = 8,
        max_seq_length: int | None = None,
        owns_runtime: bool = False,
        constraints: ConstraintCompiler | None = None,
        fast_forward: bool = True,
    ) -> None:
        if tokenizer.vocab_size > runtime.config.padded_vocab_size:
            raise InvalidTokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model only "
                f"{runtime.config.padded_vocab_size}; load the tokenizer that belongs to the model"
            )
        if max_seq_length is None:
            max_seq_length = min(runtime.config.seq_length, _USUAL_LENGTH)
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._owns_runtime = owns_runtime
        self._preparation = Preparation(
            tokenizer, max_seq_length, constraints=constraints, fast_forward=fast_forward
        )
        session = runtime.start_decode(slots=slots, max_seq_length=max_seq_length)
        self._scheduler = Scheduler(session)

    @property
    def runtime(self) -> ModelRuntime:
        """The loaded model."""
        return self._runtime

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def chat(
        self,
        history: History,
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> Reply:
        """Answer a conversation.

        Args:
            history: the conversation so far; it may end with any role.
            config: generation parameters; by default the official model's.
            tools: tools to offer in the system message. They do not enter the reply's
                history, so pass them again with every turn.

        Returns:
            The reply; its history is the conversation with the reply appended.

        Raises:
            InvalidMessageError: an empty history, or a message that cannot be read.
            InvalidToolError: a tool that cannot be described to the model, or called by it.
            InvalidConstraintError: a constraint or a tool's schema that cannot be enforced.
            UnknownNameError: `tool_choice` names a tool that is not on offer.
            BackendUnavailableError: a constraint needs `pip install 'glm3sdk[structured]'`.
            PromptTooLongError: the conversation leaves no room for a reply.
            ServiceClosedError: the service was closed.
            NonFiniteLogitsError: the model returned NaN.
        """
        return self.chat_batch([history], config, tools)[0]

    def stream_chat(
        self,
        history: History,
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> Generator[Delta, None, None]:
        """Answer a conversation event by event; `ReplyEnd` with the whole reply comes last.

        The events' `content`, joined, is the reply's. Bad input raises here; generation
        begins with the first `next`, and closing or dropping the generator ends it.
        Arguments and errors are those of `chat`.
        """
        return self._stream(self._preparation.chat(history, config, tools))

    def chat_batch(
        self,
        histories: Sequence[History],
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> list[Reply]:
        """Answer several conversations side by side; arguments and errors as for `chat`.

        Nothing is generated unless every history is valid, and where one conversation
        fails the others are given up. Replies come in the order of the histories.
        """
        requests = [self._preparation.chat(history, config, tools) for history in histories]
        ends = {
            index: event.reply
            for index, event in run(self._scheduler, requests)
            if isinstance(event, ReplyEnd)
        }
        return [ends[index] for index in range(len(requests))]

    def generate(self, prompt: str, config: GenerationConfig | None = None) -> Completion:
        r"""Continue a text.

        Args:
            prompt: plain text, which is read after `[gMASK] sop`, or a ready-made prompt
                such as "[gMASK]sop<|user|> \n 你好<|assistant|>", which is parsed back into
                messages. Unlike in `chat`, no tool calls are read from what follows.
            config: generation parameters; by default the official model's.

        Returns:
            What follows the prompt, why it ended, and the tokens read and written.

        Raises:
            InvalidMessageError: the prompt is not text.
            PromptTooLongError: the prompt leaves no room for a reply.
            ServiceClosedError: the service was closed.
        """
        return self.generate_batch([prompt], config)[0]

    def stream_generate(
        self, prompt: str, config: GenerationConfig | None = None
    ) -> Generator[TextDelta | CompletionEnd, None, None]:
        """Continue a text piece by piece; `CompletionEnd` comes last. As `stream_chat`."""
        return self._stream(self._preparation.completion(prompt, config))

    def generate_batch(
        self, prompts: Sequence[str], config: GenerationConfig | None = None
    ) -> list[Completion]:
        """Continue several texts side by side; as `chat_batch`."""
        requests = [self._preparation.completion(prompt, config) for prompt in prompts]
        ends = {
            index: event.completion
            for index, event in run(self._scheduler, requests)
            if isinstance(event, CompletionEnd)
        }
        return [ends[index] for index in range(len(requests))]

    def run_tools(
        self,
        history: History,
        tools: Sequence[Tool | Callable[..., Any]],
        config: GenerationConfig | None = None,
        max_rounds: int = 8,
    ) -> Reply:
        """Answer a conversation, calling Python functions for the model on the way.

        Args:
            history: the conversation so far.
            tools: functions, described by their signature and docstring, or `Tool`s. One
                named "interpreter" is given the model's code cells as `code`.
            config: generation parameters of every round. A call that `tool_choice` asks for
                is asked for in the first round alone; the later ones have "auto".
            max_rounds: most times that the calls of a reply are answered.

        Returns:
            The first reply that calls nothing. Or, unanswered, one that was cut by length,
            that holds code and there is no interpreter, or that still calls a tool after
            `max_rounds`. Its history holds every call and observation on the way; its
            usage is that of the last round.

        Raises:
            InvalidToolError: a function that cannot be described, or two of one name.
        """
        return run_tools(self.chat, history, tools, config=config, max_rounds=max_rounds)

    async def achat(
        self,
        history: History,
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> Reply:
        """Answer a conversation from asyncio; arguments and errors as for `chat`.

        The event loop goes on meanwhile. Cancelling the task gives the slot free.
        """
        return (await self.achat_batch([history], config, tools))[0]

    async def astream_chat(
        self,
        history: History,
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Answer a conversation event by event from asyncio; as `stream_chat`.

        Bad input raises with the first step. Cancelling the task that waits for an event, or
        closing the generator (`contextlib.aclosing`), gives the slot free; a generator that
        is left half-read goes on until it is collected.
        """
        request = await asyncio.to_thread(self._preparation.chat, history, config, tools)
        async with aclosing(self.arun([request])) as events:
            async for _, event in events:
                yield event

    async def achat_batch(
        self,
        histories: Sequence[History],
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> list[Reply]:
        """Answer several conversations side by side from asyncio; as `chat_batch`."""
        requests = await asyncio.to_thread(
            lambda: [self._preparation.chat(history, config, tools) for history in histories]
        )
        ends: dict[int, Reply] = {}
        async with aclosing(self.arun(requests)) as events:
            async for index, event in events:
                if isinstance(event, ReplyEnd):
                    ends[index] = event.reply
        return [ends[index] for index in range(len(requests))]

    def prepare_chat(
        self,
        history: History,
        config: GenerationConfig | None = None,
        tools: Tools | None = None,
    ) -> Request[Delta]:
        """Check and encode what `chat` would answer, for `arun`; errors as for `chat`."""
        return self._preparation.chat(history, config, tools)

    def prepare_completion(
        self, prompt: str, config: GenerationConfig | None = None
    ) -> Request[TextDelta | CompletionEnd]:
        """Check and encode what `generate` would continue, for `arun`."""
        return self._preparation.completion(prompt, config)

    def arun(self, requests: Sequence[Request[Event]]) -> AsyncGenerator[tuple[int, Event], None]:
        """Run prepared requests side by side; yields each event with its request's index.

        All start with the first step. One that fails raises and ends the others. A request
        runs once.
        """
        return arun(self._scheduler, requests)

    @property
    def load(self) -> Load:
        """Slots, how many are busy, and how many requests wait for one."""
        return self._scheduler.load

    def check_open(self) -> None:
        """Raise a ServiceClosedError after `close`."""
        self._scheduler.check_open()

    def close(self) -> None:
        """End what is being generated and free the kv_cache. Closing twice does nothing.

        Whoever waits for a reply gets a ServiceClosedError.
        """
        self._scheduler.close()
        if self._owns_runtime:
            self._runtime.close()

    def __enter__(self) -> Glm3Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self, request: Request[Event]) -> Generator[Event, None, None]:
        self._scheduler.check_open()
        return _without_index(run(self._scheduler, [request]))


def _without_index(
    events: Generator[tuple[int, Event], None, None],
) -> Generator[Event, None, None]:
    try:
        for _, event in events:
            yield event
    finally:
        events.close()
