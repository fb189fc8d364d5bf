from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.detokenizer import Detokenizer
from glm3sdk.services.stop_strings import StopStrings
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer

BYTES = st.integers(3, 258)
# Lead bytes, continuation bytes and the bytes of U+FFFD itself, where decoders disagree.
TRICKY_BYTES = st.sampled_from([3 + b for b in (0x41, 0x80, 0xBF, 0xBD, 0xE4, 0xEF, 0xF0, 0x9F)])
# Pieces that are only a space or hold U+FFFD, ids without text, and the specials' ends.
ODD_IDS = st.sampled_from([30910, 265, 13, 14924, 20785, 31080, 0, 1, 2, 64789, 64797, 65023])


def id_lists(*kinds: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    mixed = st.lists(st.one_of(*kinds), max_size=120)
    repeated = st.builds(
        lambda head, cycle, times, tail: head + cycle * times + tail,
        st.lists(st.one_of(*kinds), max_size=6),
        st.lists(st.one_of(*kinds), min_size=1, max_size=5),
        st.integers(1, 40),
        st.lists(st.one_of(*kinds), max_size=6),
    )
    return mixed | repeated


@pytest.fixture(scope="module")
def published(shared_data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")


def streamed(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join([detokenizer.push(i) for i in token_ids]) + detokenizer.finish()


@settings(max_examples=400)
@given(ids=id_lists(BYTES, TRICKY_BYTES, st.integers(0, 280)))
def test_streaming_equals_whole_decoding_with_the_fake(ids: list[int]) -> None:
    tokenizer = CharacterTokenizer()
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@settings(max_examples=400)
@given(ids=id_lists(BYTES, TRICKY_BYTES, ODD_IDS, st.integers(0, 70_000)))
def test_streaming_equals_whole_decoding_with_the_published_tokenizer(
    published: SentencePieceTokenizer, ids: list[int]
) -> None:
    assert streamed(published, ids) == published.decode(ids)


@settings(max_examples=200)
@given(ids=id_lists(BYTES, TRICKY_BYTES))
def test_streaming_equals_whole_decoding_of_byte_pieces(
    published: SentencePieceTokenizer, ids: list[int]
) -> None:
    assert streamed(published, ids) == published.decode(ids)


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_whole_text_never_streams_as_a_replacement_character(
    published: SentencePieceTokenizer, text: str
) -> None:
    for tokenizer in (published, CharacterTokenizer()):
        detokenizer = Detokenizer(tokenizer)
        for token_id in tokenizer.encode(text):
            assert "\ufffd" not in detokenizer.push(token_id)
        assert detokenizer.finish() == ""


NAMES = st.sampled_from([token.value for token in SpecialToken] + ["</s>", "<unk>", "<0xE4>"])


@settings(max_examples=300)
@given(parts=st.lists(NAMES | st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_no_text_encodes_to_a_special_id(
    published: SentencePieceTokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    for tokenizer in (published, CharacterTokenizer()):
        first_special = tokenizer.special_id(SpecialToken.MASK)
        ids = tokenizer.encode(text)
        assert all(2 < token_id < first_special for token_id in ids)
        # The vocabulary writes a space as U+2581, so that one character comes back as a space.
        spelled = text if tokenizer is not published else text.replace("\u2581", " ")
        assert tokenizer.decode(ids) == spelled


LETTERS = st.text("abc", max_size=12)


@settings(max_examples=500)
@given(
    chunks=st.lists(LETTERS, max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_find_what_a_search_of_the_whole_text_finds(
    chunks: list[str], stops: list[str]
) -> None:
    text = "".join(chunks)
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    start, _, matched = min(found, default=(len(text), 0, None))

    stream = StopStrings(stops)
    shown = "".join([stream.push(chunk) for chunk in chunks]) + stream.finish()

    assert shown == text[:start]
    assert stream.matched == matched


@settings(max_examples=200)
@given(
    chunks=st.lists(LETTERS, max_size=6),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_hold_back_no_more_than_they_must(chunks: list[str], stops: list[str]) -> None:
    stream = StopStrings(stops)
    fed = shown = ""
    for chunk in chunks:
        fed += chunk
        shown += stream.push(chunk)
        held = fed[len(shown) :]
        if stream.matched is None and held:
            assert any(stop.startswith(held) for stop in stops)
