"""Constraints that llguidance checks, over this project's tokenizers."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from glm3sdk.adapters.llguidance.grammars import grammar_of
from glm3sdk.domain.constraints import Constraint, ToolCalls
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import BackendUnavailableError, InvalidConstraintError
from glm3sdk.ports.arrays import BoolArray
from glm3sdk.ports.constraint import StartConstraint
from glm3sdk.ports.tokenizer import Tokenizer, dummy_prefix, encode_continuation, piece_bytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# <unk>, <s> and </s> in every published tokenizer of this model.
_UNKNOWN_ID, _BOS_ID, _EOS_ID = 0, 1, 2
_MOST_REMEMBERED = 128


class LlguidanceConstraints:
    """A `ConstraintCompiler`. Nothing is imported or built before the first constraint.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._ready: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, constraint: Constraint | ToolCalls, *, opening: str = "") -> StartConstraint:
        """Check a constraint and prepare it; the last 128 are remembered."""
        key = f"{opening}\n{type(constraint).__name__}\n{_identity(constraint)}"
        with self._lock:
            matcher = self._ready.get(key)
            if matcher is None:
                try:
                    matcher = self._matcher(constraint, opening)
                except UnicodeEncodeError as exc:
                    raise InvalidConstraintError(
                        f"the {type(constraint).__name__} constraint holds "
                        f"{exc.object[exc.start]!r}, half of a character (a lone surrogate)"
                    ) from exc
                self._ready[key] = matcher
            self._ready.move_to_end(key)
            if len(self._ready) > _MOST_REMEMBERED:
                self._ready.popitem(last=False)
        vocab_size = self._tokenizer.vocab_size
        return lambda: LlguidanceState(matcher.deep_copy(), vocab_size)

    def _matcher(self, constraint: Constraint | ToolCalls, opening: str) -> LLMatcher:
        try:
            from llguidance import LLMatcher, regex_to_lark
        except ImportError as exc:
            raise BackendUnavailableError(
                "constrained decoding needs llguidance, which is not installed: "
                "pip install 'glm3sdk[structured]'"
            ) from exc
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer)
        vocabulary = self._vocabulary

        def matches(terminal: str) -> bool:
            matcher = LLMatcher(vocabulary, f"start: T\nT: {terminal}\n", log_level=0)
            if matcher.is_error():
                raise ValueError(_first_lines(matcher.get_error()))
            matcher.compute_bitmask()
            return matcher.is_accepting() or not matcher.is_stopped()

        grammar = grammar_of(
            constraint,
            opening=opening,
            prefix=dummy_prefix(self._tokenizer),
            next_turn_id=self._tokenizer.special_id(SpecialToken.ASSISTANT),
            matches=matches,
            escape=lambda pattern: regex_to_lark(pattern, ""),
        )
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            kind = type(constraint).__name__
            raise InvalidConstraintError(
                f"the {kind} constraint cannot be used: {_first_lines(matcher.get_error())}"
            )
        return matcher


class LlguidanceState:
    """A `ConstraintState` over a matcher."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def complete(self) -> bool:
        """Whether what was written is all that the constraint asks for."""
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether it is complete and nothing can follow."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def fill_mask(self, allowed: BoolArray) -> None:
        """Write which ids may come next into `allowed` `[V]`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed[:] = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        # llguidance's own sign that the text is complete.
        allowed[_EOS_ID] = False

    def accept(self, token_id: int) -> None:
        """Take an allowed token."""
        if not self._matcher.consume_token(token_id):
            raise InvalidConstraintError(
                f"the constraint cannot go on with token {token_id}: "
                f"{_first_lines(self._matcher.get_error())}"
            )

    def forced(self) -> Sequence[int]:
        """The ids that must come next."""
        return self._matcher.compute_ff_tokens()


@attrs.frozen
class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    encode: Callable[[str], list[int]]
    eos_token_id: int = _EOS_ID
    bos_token_id: int = _BOS_ID

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    special = [_UNKNOWN_ID, _BOS_ID, _EOS_ID, *map(tokenizer.special_id, SpecialToken)]
    wanted = _Vocabulary(
        tokens=[piece_bytes(tokenizer.piece(i)) for i in range(tokenizer.vocab_size)],
        special_token_ids=special,
        encode=lambda text: encode_continuation(tokenizer, text),
    )
    return LLTokenizer(TokenizerWrapper(wanted))


def _identity(constraint: Constraint | ToolCalls) -> str:
    return json.dumps(attrs.asdict(constraint), ensure_ascii=False)


def _first_lines(message: str) -> str:
    """An error of llguidance's on one line: what is wrong, and the place that it quotes."""
    told, _, _ = message.partition("<state>")
    lines = [line.strip() for line in told.strip().splitlines() if line.strip(" ^")]
    return " ".join(lines)[:400]
