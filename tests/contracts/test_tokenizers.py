from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.tokenizer_contract import TokenizerContract


class TestCharacterTokenizer(TokenizerContract):
    @pytest.fixture
    def tokenizer(self) -> CharacterTokenizer:
        return CharacterTokenizer()

    def test_ids_can_be_worked_out_by_hand(self, tokenizer: CharacterTokenizer) -> None:
        assert tokenizer.encode("\0a") == [3, 3 + ord("a")]
        assert tokenizer.vocab_size == 268
        assert [tokenizer.piece(i) for i in (-1, 0, 1, 2, 3, 258)] == [
            "",
            "<unk>",
            "<s>",
            "</s>",
            "<0x00>",
            "<0xFF>",
        ]


@pytest.fixture(scope="module")
def published(shared_data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")


class TestPublishedTokenizer(TokenizerContract):
    @pytest.fixture
    def tokenizer(self, published: SentencePieceTokenizer) -> SentencePieceTokenizer:
        return published


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    prefix = tmp_path_factory.mktemp("tokenizer") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat said hi to you", "你好，今天天气怎么样"] * 20),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    return SentencePieceTokenizer(prefix.with_suffix(".model"))


class TestTokenizerTrainedWithByteFallback(TokenizerContract):
    @pytest.fixture
    def tokenizer(self, trained: SentencePieceTokenizer) -> SentencePieceTokenizer:
        return trained


def test_the_contract_catches_a_tokenizer_that_lets_text_become_special() -> None:
    class Gullible(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            return [264] if text == "<|user|>" else super().encode(text)

    with pytest.raises(AssertionError, match="special"):
        TokenizerContract().test_text_never_becomes_a_special_token(Gullible())
