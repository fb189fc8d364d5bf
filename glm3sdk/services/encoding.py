"""From messages to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glm3sdk.domain.chat import Message, Role
from glm3sdk.domain.history import read_history
from glm3sdk.domain.prompt import Segment, render_message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.ports.tokenizer import Tokenizer


def encode_segments(segments: Iterable[Segment], tokenizer: Tokenizer) -> list[int]:
    """Encode each text by itself and each special token to its id.

    Texts are not joined first: each gets a dummy prefix of its own, as in training.
    """
    input_ids: list[int] = []
    for segment in segments:
        if isinstance(segment, SpecialToken):
            input_ids.append(tokenizer.special_id(segment))
        elif segment:
            input_ids.extend(tokenizer.encode(segment))
    return input_ids


def encode_message(message: Message, tokenizer: Tokenizer) -> list[int]:
    """Encode one message, its role token first.

    A message that the model wrote keeps the ids that it wrote, unless it was edited since
    or comes from another tokenizer.
    """
    written = message.tokens
    if (
        written is not None
        and message.role is Role.ASSISTANT
        and (written.metadata, written.content) == (message.metadata, message.content)
        and written.tokenizer == tokenizer.fingerprint
    ):
        return [tokenizer.special_id(SpecialToken.ASSISTANT), *written.input_ids]
    return encode_segments(render_message(message), tokenizer)


def encode_chat(messages: Sequence[Message | Mapping[str, Any]], tokenizer: Tokenizer) -> list[int]:
    """Encode a conversation up to the point where the model answers.

    Args:
        messages: `Message`s or dicts in OpenAI's form, oldest first.
        tokenizer: the model's tokenizer.

    Returns:
        The ids of `[gMASK] sop`, every message and `<|assistant|>`.

    Raises:
        InvalidMessageError: a message is not what the model can read.
    """
    input_ids = encode_segments((SpecialToken.GMASK, SpecialToken.SOP), tokenizer)
    for message in read_history(messages):
        input_ids.extend(encode_message(message, tokenizer))
    input_ids.append(tokenizer.special_id(SpecialToken.ASSISTANT))
    return input_ids
