"""A tokenizer without a file, for unit tests of applications that embed the SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from operator import index

from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidMessageError, SlotError

_NAMES = ("<unk>", "<s>", "</s>")
_FIRST_BYTE = len(_NAMES)
_FIRST_SPECIAL = _FIRST_BYTE + 256


class CharacterTokenizer:
    """One id for each byte of UTF-8: 0 unk and pad, 1 bos, 2 eos, then 256 bytes.

    The nine special tokens are 259..267. Ids can be worked out by hand: `encode("a")` is
    `[100]`, 3 more than the byte's value, and text gets no prefix.
    """

    @property
    def vocab_size(self) -> int:
        """268: three controls, 256 bytes, nine special tokens."""
        return _FIRST_SPECIAL + len(SpecialToken)

    @property
    def fingerprint(self) -> str:
        """The same for every `CharacterTokenizer`."""
        return hashlib.sha256(b"glm3sdk.testing.CharacterTokenizer").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode each byte of the text's UTF-8.

        Raises:
            InvalidMessageError: text that UTF-8 cannot hold (a lone surrogate).
        """
        try:
            return [_FIRST_BYTE + byte for byte in text.encode("utf-8")]
        except UnicodeEncodeError as exc:
            raise InvalidMessageError(
                f"text holds {text[exc.start]!r}, half of a character (a lone surrogate)"
            ) from exc

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode ids; those without text give nothing and split what stands around them.

        Raises:
            SlotError: a negative id.
        """
        runs = groupby(map(index, token_ids), key=_is_byte)
        return "".join(
            bytes(token_id - _FIRST_BYTE for token_id in run).decode("utf-8", errors="replace")
            for is_byte, run in runs
            if is_byte
        )

    def special_id(self, token: SpecialToken) -> int:
        """The id of a special token: 259..267."""
        return _FIRST_SPECIAL + list(SpecialToken).index(token)

    def piece(self, token_id: int) -> str:
        """The name of an id, such as `<0x61>` or `<|user|>`; "" beyond the vocabulary."""
        if token_id < 0 or token_id >= self.vocab_size:
            return ""
        if token_id >= _FIRST_SPECIAL:
            return list(SpecialToken)[token_id - _FIRST_SPECIAL].value
        return f"<0x{token_id - _FIRST_BYTE:02X}>" if _is_byte(token_id) else _NAMES[token_id]


def _is_byte(token_id: int) -> bool:
    if token_id < 0:
        raise SlotError(f"token id {token_id} is negative; ids count from 0")
    return _FIRST_BYTE <= token_id < _FIRST_SPECIAL
