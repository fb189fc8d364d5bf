"""What every tokenizer promises, as tests that a subclass inherits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import Glm3Error, InvalidMessageError, SlotError
from glm3sdk.ports.tokenizer import Tokenizer

_CONTROL_IDS = (0, 1, 2)
_TEXTS = (
    "",
    "a",
    "hi",
    " ",
    "\n",
    "  two spaces, then\ttab\r\nand a line\n\n",
    "你好👋！我是人工智能助手，很高兴见到你。",
    "👩\u200d👩\u200d👧 e\u0301 \N{REPLACEMENT CHARACTER} \U0010fffd",
    "\0 and \x7f",
    "<0xE4> </s> <unk> <s>",
    "晚上睡不着 " * 500,
)


class TokenizerContract:
    """Tests of the port's promises, collected by pytest from a subclass.

    Example:
        class TestMyTokenizer(TokenizerContract):
            @pytest.fixture
            def tokenizer(self): return MyTokenizer(...)
    """

    def test_text_comes_back_as_it_was(self, tokenizer: Tokenizer) -> None:
        for text in _TEXTS:
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_text_never_becomes_a_special_token(self, tokenizer: Tokenizer) -> None:
        reserved = {tokenizer.special_id(token) for token in SpecialToken} | set(_CONTROL_IDS)
        names = [token.value for token in SpecialToken] + ["</s>", "<s>", "<unk>"]
        for text in (*_TEXTS, *names, "".join(names), " ".join(names), "[gMASK]sop<|user|>\nhi"):
            ids = tokenizer.encode(text)
            assert reserved.isdisjoint(ids), f"{text!r} gave the special ids of {ids}"
            assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)

    def test_special_tokens_end_the_vocabulary_in_their_order(self, tokenizer: Tokenizer) -> None:
        first = tokenizer.vocab_size - len(SpecialToken)
        ids = [tokenizer.special_id(token) for token in SpecialToken]
        assert ids == list(range(first, tokenizer.vocab_size))

    def test_special_tokens_are_named_and_nothing_is_beyond_them(
        self, tokenizer: Tokenizer
    ) -> None:
        for token in SpecialToken:
            assert tokenizer.piece(tokenizer.special_id(token)) == token.value
        assert all(tokenizer.piece(token_id) for token_id in tokenizer.encode("hi 你好"))
        assert tokenizer.piece(tokenizer.vocab_size) == ""

    def test_ids_without_text_decode_to_nothing(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.decode([]) == ""
        for token_id in self._silent_ids(tokenizer):
            assert tokenizer.decode([token_id]) == ""
            assert tokenizer.decode([token_id, token_id]) == ""

    def test_text_around_an_id_without_text_is_decoded_by_itself(
        self, tokenizer: Tokenizer
    ) -> None:
        before, after = tokenizer.encode("you said"), tokenizer.encode("hi")
        for token_id in self._silent_ids(tokenizer):
            assert tokenizer.decode([*before, token_id, *after]) == "you saidhi"

    def test_bytes_that_are_not_utf8_become_replacement_characters(
        self, tokenizer: Tokenizer
    ) -> None:
        # A private-use character of the last plane is in no vocabulary: four byte ids.
        before, (first, *rest) = tokenizer.encode("ok"), tokenizer.encode("\U0010fffd")[-4:]
        assert tokenizer.decode([*before, first, *rest]) == "ok\U0010fffd"
        for broken in ([first], [first, *rest[:2]], rest, [first, first, *rest[1:]]):
            text = tokenizer.decode([*before, *broken])
            assert text.startswith("ok\N{REPLACEMENT CHARACTER}")
            assert set(text[2:]) == {"\N{REPLACEMENT CHARACTER}"}
        silent = tokenizer.special_id(SpecialToken.USER)
        split = tokenizer.decode([first, silent, *rest])
        assert split == tokenizer.decode([first]) + tokenizer.decode(rest)

    def test_half_a_surrogate_pair_is_refused(self, tokenizer: Tokenizer) -> None:
        with _raises(InvalidMessageError):
            tokenizer.encode("half \ud83d of a pair")

    def test_a_negative_id_is_refused(self, tokenizer: Tokenizer) -> None:
        with _raises(SlotError):
            tokenizer.decode([*tokenizer.encode("hi"), -1])

    def test_the_fingerprint_is_stable(self, tokenizer: Tokenizer) -> None:
        before = tokenizer.fingerprint
        tokenizer.decode(tokenizer.encode("你好"))
        assert before, "a fingerprint must not be empty"
        assert tokenizer.fingerprint == before

    def test_threads_may_share_it(self, tokenizer: Tokenizer) -> None:
        texts = [f"{text}{number}" for number in range(20) for text in _TEXTS]
        expected = [tokenizer.encode(text) for text in texts]
        with ThreadPoolExecutor(max_workers=4) as threads:
            encoded = list(threads.map(tokenizer.encode, texts))
            decoded = list(threads.map(tokenizer.decode, expected))
        assert encoded == expected
        assert decoded == texts

    @staticmethod
    def _silent_ids(tokenizer: Tokenizer) -> list[int]:
        special = [tokenizer.special_id(token) for token in SpecialToken]
        return [*_CONTROL_IDS, *special, tokenizer.vocab_size, tokenizer.vocab_size + 1000]


@contextmanager
def _raises(error: type[Glm3Error]) -> Iterator[None]:
    # Not pytest.raises: this package is installed without pytest too.
    try:
        yield
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
