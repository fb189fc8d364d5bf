"""From what a caller passes to a request that is ready to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from glm3sdk.domain.chat import CompletionEnd, Delta, Message, TextDelta, ToolSpec
from glm3sdk.domain.constraints import Constraint, ToolCalls, tool_calls
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.history import read_history
from glm3sdk.domain.prompt import offer_tools, offered_tools, parse_ready_made
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_functions import Tool
from glm3sdk.errors import (
    InvalidGenerationConfigError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
    UnsupportedOptionError,
)
from glm3sdk.ports.constraint import ConstraintCompiler, StartConstraint
from glm3sdk.ports.tokenizer import Tokenizer, dummy_prefix, encode_continuation
from glm3sdk.services.encoding import encode_chat, encode_segments
from glm3sdk.services.reply_stream import CompletionStream, ReplyStream
from glm3sdk.services.request import Event, EventStream, Request
from glm3sdk.services.sampling import Sampler
from glm3sdk.services.structure import TokenConstraint

History: TypeAlias = Sequence[Message | Mapping[str, Any]]
"""`Message`s or dicts in OpenAI's form, oldest first."""

Tools: TypeAlias = Sequence[ToolSpec | Tool | Mapping[str, Any]]
"""Tools to offer: `ToolSpec`s, functions made with `@tool`, or dicts in OpenAI's form."""

# </s> in every published tokenizer of this model.
_EOS_ID = 2


class Preparation:
    """Checks, encodes and configures; nothing runs yet, so bad input is known at once.

    Args:
        tokenizer: the model's tokenizer.
        max_seq_length: most tokens of prompt and reply together.
        constraints: prepares what replies are held to; None refuses that.
        fast_forward: whether forced tokens are read at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_seq_length: int,
        *,
        constraints: ConstraintCompiler | None = None,
        fast_forward: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_seq_length = max_seq_length
        self._constraints = constraints
        self._fast_forward = fast_forward
        self._prefix = dummy_prefix(tokenizer)
        ends = (SpecialToken.USER, SpecialToken.OBSERVATION)
        self._stop_ids = frozenset({_EOS_ID, *map(tokenizer.special_id, ends)})

    def chat(
        self, history: History, config: GenerationConfig | None, tools: Tools | None
    ) -> Request[Delta]:
        """Prepare the answer to a conversation; see `Glm3Service.chat`."""
        config = _checked(config)
        messages = read_history(history)
        if not messages:
            raise InvalidMessageError("the history is empty; pass at least one message")
        offered = messages
        if tools is not None:
            offered = offer_tools(messages, _specs(tools))
        if config.tool_choice is not None:
            calls = tool_calls(config.tool_choice, offered_tools(offered))
            start = self._start(calls, opening="")
        else:
            # Text stands on the second line of a turn, behind its empty metadata.
            opening = f"{self._prefix}\n{self._prefix}"
            start = self._start(config.constraint, opening=opening)
        stream = ReplyStream(
            messages,
            tokenizer=self._tokenizer,
            stops=config.stop,
            structure=start() if start else None,
        )
        return self._request(encode_chat(offered, self._tokenizer), config, stream, start)

    def completion(
        self, prompt: str, config: GenerationConfig | None
    ) -> Request[TextDelta | CompletionEnd]:
        """Prepare the continuation of a text; see `Glm3Service.generate`."""
        config = _checked(config)
        if not isinstance(prompt, str):
            raise InvalidMessageError(f"a prompt must be text, not {prompt!r:.80}")
        ready_made = parse_ready_made(prompt)
        plain = Message.user(prompt).content  # refuses half a character
        if config.tool_choice not in (None, "auto", "none"):
            raise InvalidGenerationConfigError(
                f"tool_choice={config.tool_choice!r}: a raw prompt offers no tools; call `chat`"
            )
        segments = ready_made or (SpecialToken.GMASK, SpecialToken.SOP, plain)
        if config.constraint is not None and segments[-1] is SpecialToken.ASSISTANT:
            segments = (*segments, "\n")
        prompt_ids = encode_segments(segments, self._tokenizer)
        # A ready-made prompt ends where a message begins: nothing there to go on with.
        before = [] if ready_made else prompt_ids
        opening = self._prefix if ready_made or not prompt else ""
        start = self._start(config.constraint, opening=opening)
        stream = CompletionStream(
            before,
            tokenizer=self._tokenizer,
            stops=config.stop,
            structure=start() if start else None,
        )
        return self._request(prompt_ids, config, stream, start)

    def _start(
        self, constraint: Constraint | ToolCalls | None, *, opening: str
    ) -> StartConstraint | None:
        if constraint is None:
            return None
        if self._constraints is None:
            raise UnsupportedOptionError(
                "this service was made without constraints, which tool_choice and constraint "
                "need; use load_service, or pass Glm3Service(constraints=...)"
            )
        return self._constraints.compile(constraint, opening=opening)

    def _request(
        self,
        prompt_ids: list[int],
        config: GenerationConfig,
        stream: EventStream[Event],
        start: StartConstraint | None,
    ) -> Request[Event]:
        limit = min(config.max_length, self._max_seq_length)
        room = limit - len(prompt_ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens and the limit for prompt and reply is "
                f"{limit} (max_length={config.max_length}, the service's "
                f"max_seq_length={self._max_seq_length}); shorten the history or raise the limit"
            )
        stop_ids = self._stop_ids.union(config.stop_token_ids)
        constraint = None
        if start is not None:
            constraint = TokenConstraint(
                start(),
                vocab_size=self._tokenizer.vocab_size,
                stop_ids=stop_ids,
                # What is appended unsampled would pass by the words that are banned.
                fast_forward=self._fast_forward and not config.bad_words,
            )
        sampler = Sampler(
            config,
            vocab_size=self._tokenizer.vocab_size,
            stop_ids=stop_ids,
            prompt_ids=prompt_ids,
            bad_words_ids=[ids for word in config.bad_words for ids in self._spellings(word)],
            constraint=constraint,
        )
        return Request(
            prompt_ids=tuple(prompt_ids),
            sampler=sampler,
            stop_ids=stop_ids,
            max_new_tokens=min(room, config.max_new_tokens or room),
            stream=stream,
            constraint=constraint,
            guesses=config.prompt_lookup_num_tokens,
        )

    def _spellings(self, word: str) -> list[list[int]]:
        """The ids of a word at the start of a text, and after other text."""
        return [self._tokenizer.encode(word), encode_continuation(self._tokenizer, word)]


def _checked(config: GenerationConfig | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if not isinstance(config, GenerationConfig):
        raise InvalidGenerationConfigError(f"config must be a GenerationConfig, not {config!r:.80}")
    return config


def _specs(tools: Tools) -> list[ToolSpec | Mapping[str, Any]]:
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InvalidToolError(f"tools are a list of tools, not {tools!r:.80}")
    return [each.spec if isinstance(each, Tool) else each for each in tools]
