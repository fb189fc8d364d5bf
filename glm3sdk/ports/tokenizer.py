"""The port of tokenizers: text to token ids and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from glm3sdk.domain.special_tokens import SpecialToken


class Tokenizer(Protocol):
    """Text to token ids and back. Contract: `glm3sdk.testing.TokenizerContract`."""

    @property
    def vocab_size(self) -> int:
        """Ids that stand for something: the pieces and the nine special tokens."""

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly if they give the same ids (a digest)."""

    def encode(self, text: str) -> list[int]:
        """Encode text; never an id of a special token, whatever the text says."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode ids. Special tokens and ids without text give nothing.

        Bytes that are not UTF-8 become U+FFFD. The text on either side of a special token
        is decoded by itself, so each side loses its own dummy prefix.

        Raises:
            SlotError: a negative id.
        """

    def special_id(self, token: SpecialToken) -> int:
        """The id of a special token."""

    def piece(self, token_id: int) -> str:
        """The vocabulary's name of an id, such as `▁你` or `<|user|>`; "" where it has none."""


_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece stands for inside a text: a space for `▁`, one for `<0x0A>`.

    The dummy prefix that decoding strips from the start of a text is not stripped here.
    Special tokens have no bytes; the caller knows their ids.
    """
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def dummy_prefix(tokenizer: Tokenizer) -> str:
    """What the tokenizer puts before a text that it encodes: a space, or nothing."""
    pieces = map(tokenizer.piece, tokenizer.encode("\n"))
    return b"".join(map(piece_bytes, pieces)).decode().removesuffix("\n")


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text that goes on with other text, so that it gets no dummy prefix.

    A newline is a byte of its own in ChatGLM's vocabulary and merges with nothing.
    """
    newline = tokenizer.encode("\n")
    return tokenizer.encode("\n" + text)[len(newline) :]
