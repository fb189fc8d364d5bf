"""The port of tokenizers: text to token ids and back."""

from __future__ import annotations

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
