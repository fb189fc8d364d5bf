from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.errors import SlotError
from glm3sdk.services.detokenizer import Detokenizer
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer


@pytest.fixture(scope="module")
def published(shared_data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")


def pushed(detokenizer: Detokenizer, token_ids: Iterable[int]) -> list[str]:
    return [detokenizer.push(token_id) for token_id in token_ids]


def test_an_emoji_of_four_byte_pieces_arrives_whole(published: SentencePieceTokenizer) -> None:
    detokenizer = Detokenizer(published)
    assert pushed(detokenizer, [36474, 243, 162, 148, 142, 31404]) == ["你", "", "", "", "👋", "！"]
    assert detokenizer.finish() == ""


def test_bytes_of_a_character_arrive_whole_from_the_fake_too() -> None:
    tokenizer = CharacterTokenizer()
    detokenizer = Detokenizer(tokenizer)
    assert pushed(detokenizer, tokenizer.encode("a你👋")) == ["a", "", "", "你", "", "", "", "👋"]


def test_a_space_between_words_is_kept_and_the_first_is_not(
    published: SentencePieceTokenizer,
) -> None:
    detokenizer = Detokenizer(published)
    assert pushed(detokenizer, [36474, 36474]) == ["你", " 你"]
    assert pushed(detokenizer, [64796, 36474]) == ["", "你"]
    assert pushed(detokenizer, [30910, 30910]) == [" ", " "]


def test_an_unfinished_character_is_given_up_at_the_end(
    published: SentencePieceTokenizer,
) -> None:
    detokenizer = Detokenizer(published)
    assert pushed(detokenizer, [36474, 243, 162]) == ["你", "", ""]
    assert detokenizer.finish() == published.decode([243, 162])
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_given_up_at_a_special_token() -> None:
    detokenizer = Detokenizer(CharacterTokenizer())
    first, *rest = CharacterTokenizer().encode("👋")
    assert pushed(detokenizer, [first, 264, *rest]) == ["", "\ufffd", "", "", ""]
    assert detokenizer.finish() == "\ufffd" * 3


def test_the_next_id_after_the_end_begins_a_new_text(published: SentencePieceTokenizer) -> None:
    detokenizer = Detokenizer(published)
    pushed(detokenizer, [36474])
    detokenizer.finish()
    assert detokenizer.push(36474) == "你"


def test_a_negative_id_is_refused_and_harms_nothing() -> None:
    tokenizer = CharacterTokenizer()
    detokenizer = Detokenizer(tokenizer)
    first, second, third = tokenizer.encode("你")
    pushed(detokenizer, [first, second])
    with pytest.raises(SlotError):
        detokenizer.push(-1)
    assert detokenizer.push(third) == "你"


@pytest.mark.parametrize(
    "token_id",
    [3 + ord("a"), 3 + 0x80, 3 + 0xF0, 2, 264, 300],
    ids=["text", "broken", "unfinished", "eos", "special", "no text"],
)
def test_the_work_grows_with_the_length_and_no_faster(token_id: int) -> None:
    class Counting(CharacterTokenizer):
        decoded = 0

        def decode(self, token_ids: Sequence[int]) -> str:
            self.decoded += len(token_ids)
            return super().decode(token_ids)

    tokenizer = Counting()
    detokenizer = Detokenizer(tokenizer)
    text = "".join(pushed(detokenizer, [token_id] * 2000)) + detokenizer.finish()
    assert text == CharacterTokenizer().decode([token_id] * 2000)
    assert tokenizer.decoded < 40 * 2000
