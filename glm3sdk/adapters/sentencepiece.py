"""The tokenizer that reads the published SentencePiece file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from operator import index
from pathlib import Path

import sentencepiece

from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidMessageError, InvalidTokenizerError, SlotError

FILE_NAME = "tokenizer.model"
_EOS_ID = 2
_BYTES = 256


class SentencePieceTokenizer:
    """Text to token ids and back with a `tokenizer.model` (BPE with byte fallback).

    The nine special tokens take the ids after the last piece. Encoding never produces
    them, and several threads may use one tokenizer.

    Args:
        path: the file, or a directory that holds a `tokenizer.model`.

    Raises:
        InvalidTokenizerError: the file is missing, unreadable, or not of ChatGLM's kind.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        data = _read(path)
        self._processor = _parse(path, data)
        self._fingerprint = hashlib.sha256(data).hexdigest()
        self._pieces: int = self._processor.get_piece_size()
        ids = list(range(self._pieces))
        silent = zip(self._processor.is_control(ids), self._processor.is_unknown(ids), strict=True)
        self._silent = {i for i, (control, unknown) in enumerate(silent) if control or unknown}
        self._special_ids = {token: self._pieces + i for i, token in enumerate(SpecialToken)}
        self._special_names = {self._special_ids[token]: token.value for token in SpecialToken}

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens (64798 for the published file)."""
        return self._pieces + len(self._special_ids)

    @property
    def fingerprint(self) -> str:
        """The file's sha256."""
        return self._fingerprint

    def encode(self, text: str) -> list[int]:
        """Encode text as pieces and bytes, never as a special token.

        Raises:
            InvalidMessageError: text that UTF-8 cannot hold (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InvalidMessageError(
                f"text holds {text[exc.start]!r}, half of a character (a lone surrogate); "
                "decode it with errors='replace'"
            ) from exc
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode ids; those without text give nothing and split what stands around them.

        Raises:
            SlotError: a negative id.
        """
        runs = groupby(map(index, token_ids), key=self._has_text)
        return "".join(self._processor.decode(list(run)) for has_text, run in runs if has_text)

    def special_id(self, token: SpecialToken) -> int:
        """The id of a special token: pieces + its place in `SpecialToken`."""
        return self._special_ids[token]

    def piece(self, token_id: int) -> str:
        """The name of an id in the file, or of a special token; "" beyond the vocabulary."""
        if 0 <= token_id < self._pieces:
            name: str = self._processor.id_to_piece(token_id)
            return name
        return self._special_names.get(token_id, "")

    def _has_text(self, token_id: int) -> bool:
        if token_id < 0:
            raise SlotError(f"token id {token_id} is negative; ids count from 0")
        return token_id < self._pieces and token_id not in self._silent


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidTokenizerError(
            f"cannot read tokenizer {path}: {exc.strerror}; pass the path of a {FILE_NAME} "
            "or of the directory that holds one"
        ) from exc


def _parse(path: Path, data: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except RuntimeError as exc:
        raise InvalidTokenizerError(
            f"{path} ({len(data)} bytes) is not a SentencePiece model; "
            f"copy the {FILE_NAME} of the checkpoint again"
        ) from exc
    if processor.eos_id() != _EOS_ID:
        raise InvalidTokenizerError(
            f"{path} has its end of text at id {processor.eos_id()}, ChatGLM's is {_EOS_ID}; "
            f"use the {FILE_NAME} that belongs to the checkpoint"
        )
    ids = list(range(processor.get_piece_size()))
    byte_pieces = sum(processor.is_byte(ids))
    # Without them a character outside the vocabulary would silently become <unk>.
    if byte_pieces != _BYTES:
        raise InvalidTokenizerError(
            f"{path} has {len(ids)} pieces, {byte_pieces} of them bytes, and ChatGLM's has all "
            f"{_BYTES} bytes; train it with byte_fallback, or use the checkpoint's {FILE_NAME}"
        )
    return processor
