"""From what a caller passes to a request that is ready to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from glm3sdk.domain.chat import CompletionEnd, Delta, Message, TextDelta, ToolSpec
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.history import read_history
from glm3sdk.domain.prompt import offer_tools, parse_ready_made
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_functions import Tool
from glm3sdk.errors import (
    InvalidGenerationConfigError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
)
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.encoding import encode_chat, encode_segments
from glm3sdk.services.reply_stream import CompletionStream, ReplyStream
from glm3sdk.services.request import Event, EventStream, Request
from glm3sdk.services.sampling import Sampler

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
    """

    def __init__(self, tokenizer: Tokenizer, max_seq_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_seq_length = max_seq_length
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
        stream = ReplyStream(messages, tokenizer=self._tokenizer, stops=config.stop)
        return self._request(encode_chat(offered, self._tokenizer), config, stream)

    def completion(
        self, prompt: str, config: GenerationConfig | None
    ) -> Request[TextDelta | CompletionEnd]:
        """Prepare the continuation of a text; see `Glm3Service.generate`."""
        config = _checked(config)
        if not isinstance(prompt, str):
            raise InvalidMessageError(f"a prompt must be text, not {prompt!r:.80}")
        ready_made = parse_ready_made(prompt)
        plain = Message.user(prompt).content  # refuses half a character
        segments = ready_made or (SpecialToken.GMASK, SpecialToken.SOP, plain)
        prompt_ids = encode_segments(segments, self._tokenizer)
        # A ready-made prompt ends where a message begins: nothing there to go on with.
        before = [] if ready_made else prompt_ids
        stream = CompletionStream(before, tokenizer=self._tokenizer, stops=config.stop)
        return self._request(prompt_ids, config, stream)

    def _request(
        self, prompt_ids: list[int], config: GenerationConfig, stream: EventStream[Event]
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
        sampler = Sampler(
            config,
            vocab_size=self._tokenizer.vocab_size,
            stop_ids=stop_ids,
            prompt_ids=prompt_ids,
            bad_words_ids=[ids for word in config.bad_words for ids in self._spellings(word)],
        )
        return Request(
            prompt_ids=tuple(prompt_ids),
            sampler=sampler,
            stop_ids=stop_ids,
            max_new_tokens=min(room, config.max_new_tokens or room),
            stream=stream,
        )

    def _spellings(self, word: str) -> list[list[int]]:
        """The ids of a word at the start of a text, and after other text."""
        newline = self._tokenizer.encode("\n")
        inside = self._tokenizer.encode("\n" + word)
        return [self._tokenizer.encode(word), inside[len(newline) :]]


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
