from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidMessageError, InvalidTokenizerError

ROLES = {
    "system": SpecialToken.SYSTEM,
    "user": SpecialToken.USER,
    "assistant": SpecialToken.ASSISTANT,
    "observation": SpecialToken.OBSERVATION,
}


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Path:
    return shared_data / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer(published: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(published)


@pytest.fixture(scope="module")
def goldens(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "tokenizer" / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def of_kind(goldens: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    rows = [row for row in goldens if row["kind"] == kind]
    assert rows, f"no golden of kind {kind}"
    return rows


def opening(tokenizer: SentencePieceTokenizer) -> list[int]:
    return [tokenizer.special_id(SpecialToken.GMASK), tokenizer.special_id(SpecialToken.SOP)]


def test_every_golden_text_encodes_to_the_published_ids(
    tokenizer: SentencePieceTokenizer, goldens: list[dict[str, Any]]
) -> None:
    for row in of_kind(goldens, "encode"):
        assert opening(tokenizer) + tokenizer.encode(row["text"]) == row["ids"], row["source"]


def test_every_golden_chat_encodes_to_the_published_ids(
    tokenizer: SentencePieceTokenizer, goldens: list[dict[str, Any]]
) -> None:
    for row in of_kind(goldens, "chat"):
        ids = opening(tokenizer)
        for message in row["messages"]:
            ids.append(tokenizer.special_id(ROLES[message["role"]]))
            ids += tokenizer.encode("\n") + tokenizer.encode(message["content"])
        ids.append(tokenizer.special_id(SpecialToken.ASSISTANT))
        assert ids == row["ids"], row["source"]


def test_the_other_golden_encodings_hold(
    tokenizer: SentencePieceTokenizer, goldens: list[dict[str, Any]]
) -> None:
    for row in of_kind(goldens, "encode_raw"):
        assert tokenizer.encode(row["text"]) == row["ids"]
    for row in of_kind(goldens, "encode_pair") + of_kind(goldens, "encode_pair_noeos"):
        pair = tokenizer.encode(row["text"]) + tokenizer.encode(row["text_pair"])
        assert [*opening(tokenizer), *pair, 2] == row["ids"]
    for row in of_kind(goldens, "encode_special"):
        special = tokenizer.special_id(SpecialToken(row["text"]))
        assert [*opening(tokenizer), special] == row["ids"]
    for row in of_kind(goldens, "generated"):
        reply = row["ids"][len(opening(tokenizer) + tokenizer.encode(row["text"])) :]
        assert tokenizer.decode(reply) == row["generated"]


def test_the_published_vocabulary_has_its_known_ids(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.vocab_size == 64798
    assert tokenizer.special_id(SpecialToken.MASK) == 64789
    assert tokenizer.special_id(SpecialToken.OBSERVATION) == 64797
    assert tokenizer.encode("👋") == [30910, 243, 162, 148, 142]
    assert tokenizer.piece(36474) == "▁你"
    assert [tokenizer.piece(i) for i in (2, 64795, 64798, 65023, -1)] == [
        "</s>",
        "<|user|>",
        "",
        "",
        "",
    ]


def test_a_model_that_wrote_other_pieces_than_encode_is_read_all_the_same(
    tokenizer: SentencePieceTokenizer,
) -> None:
    ids = [30910, 13, 30910, 54622, 54591]
    assert tokenizer.decode(ids) == "\n 你好"
    assert tokenizer.decode(ids[2:]) == "你好"
    assert tokenizer.decode(np.array(ids, dtype=np.int32)) == "\n 你好"


def test_each_side_of_a_special_token_loses_its_own_prefix(
    tokenizer: SentencePieceTokenizer,
) -> None:
    assert tokenizer.decode([36474, 54591, 36474, 54591]) == "你好 你好"
    assert tokenizer.decode([36474, 54591, 64796, 36474, 54591]) == "你好你好"


def test_very_long_text_comes_back(tokenizer: SentencePieceTokenizer) -> None:
    text = "晚上睡不着应该怎么办? sleepless " * 20_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_is_named(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(InvalidMessageError, match=r"\\ud83d.*errors='replace'"):
        tokenizer.encode("hi \ud83d")


def test_a_directory_stands_for_the_file_in_it(published: Path) -> None:
    by_directory = SentencePieceTokenizer(published.parent)
    assert by_directory.fingerprint == hashlib.sha256(published.read_bytes()).hexdigest()


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    for path, named in (
        (tmp_path / "none.model", "none.model"),
        (tmp_path, str(tmp_path / "tokenizer.model")),
    ):
        with pytest.raises(InvalidTokenizerError, match="pass the path") as caught:
            SentencePieceTokenizer(path)
        assert named in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b'{"model": {}}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(InvalidTokenizerError, match=r"tokenizer\.model.*not a SentencePiece"):
        SentencePieceTokenizer(path)


def test_a_truncated_file_is_refused(tmp_path: Path, published: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(published.read_bytes()[:500_000])
    with pytest.raises(InvalidTokenizerError, match=r"500000 bytes.*copy"):
        SentencePieceTokenizer(path)


def trained(folder: Path, **options: Any) -> Path:
    defaults = {"vocab_size": 300, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat said hi to you", "你好，今天天气怎么样"] * 20),
        model_prefix=str(folder / "small"),
        model_type="bpe",
        minloglevel=3,
        **{**defaults, **options},
    )
    return folder / "small.model"


def test_a_tokenizer_with_another_end_of_text_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, bos_id=-1, eos_id=1)
    with pytest.raises(InvalidTokenizerError, match="end of text at id 1"):
        SentencePieceTokenizer(path)


def test_a_tokenizer_that_cannot_write_every_character_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, vocab_size=60, byte_fallback=False)
    with pytest.raises(InvalidTokenizerError, match=r"60 pieces, 0 of them bytes.*byte_fallback"):
        SentencePieceTokenizer(path)


def test_a_small_tokenizer_has_its_special_tokens_after_its_last_piece(tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer(trained(tmp_path))
    assert [tokenizer.special_id(token) for token in SpecialToken] == list(range(300, 309))
