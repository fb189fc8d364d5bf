"""What every constraint compiler promises, as tests that a subclass inherits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.constraints import CallRule, Choice, Constraint, JsonSchema, ToolCalls
from glm3sdk.domain.replies import parse_reply
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidConstraintError
from glm3sdk.ports.arrays import BoolArray
from glm3sdk.ports.constraint import ConstraintCompiler, ConstraintState, StartConstraint
from glm3sdk.ports.tokenizer import Tokenizer, dummy_prefix, encode_continuation

_WORDS = Choice(["是", "不是", "not sure", "not at all", "nothing", "🙂"])
_LIGHTS = ToolSpec(
    "set_lights",
    "",
    {
        "type": "object",
        "properties": {"room": {"enum": ["厨房", "kitchen"]}, "on": {"enum": [True, False]}},
        "required": ["room", "on"],
    },
)
_ALL_LIGHTS = [(room, on) for room in ("厨房", "kitchen") for on in (True, False)]
_CALLS = ToolCalls(CallRule.MUST, (_LIGHTS,))
_WALKS = 12
_LONGEST = 200


class ConstraintContract:
    """Tests of the port's promises, collected by pytest from a subclass.

    Example:
        class TestMyConstraints(ConstraintContract):
            @pytest.fixture
            def tokenizer(self): return CharacterTokenizer()

            @pytest.fixture
            def compiler(self, tokenizer): return MyConstraints(tokenizer)
    """

    def test_whatever_is_chosen_the_text_is_one_of_the_choices(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        start = compiler.compile(_WORDS)
        written = {self.walk(start, tokenizer, seed) for seed in range(4 * _WALKS)}
        assert written <= set(_WORDS.options)
        assert len(written) > 2

    def test_a_text_and_a_longer_one_that_begins_with_it_can_both_be_written(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        state = compiler.compile(Choice(["ab", "abc"]))()
        assert not state.complete
        self.write(state, encode_continuation(tokenizer, "ab"))
        assert (state.complete, state.finished) == (True, False)
        self.write(state, encode_continuation(tokenizer, "c"))
        assert (state.complete, state.finished) == (True, True)
        assert not self.mask(state, tokenizer).any()

    def test_values_are_written_as_json(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        start = compiler.compile(JsonSchema({"enum": [None, 12, "x"]}))
        written = {self.walk(start, tokenizer, seed) for seed in range(_WALKS)}
        assert written == {"null", "12", '"x"'}

    def test_an_opening_stands_before_what_is_written(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        start = compiler.compile(_WORDS, opening="so:\n")
        for seed in range(_WALKS):
            assert self.walk(start, tokenizer, seed).removeprefix("so:\n") in _WORDS.options

    def test_a_required_call_is_read_back(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        start = compiler.compile(_CALLS)
        for seed in range(_WALKS):
            (call,) = parse_reply(self.walk(start, tokenizer, seed)).tool_calls
            assert call.name == "set_lights"
            assert call.repair is None
            assert (call.arguments["room"], call.arguments["on"]) in _ALL_LIGHTS

    def test_a_turn_is_written_as_it_is_encoded_for_training(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        body = "```python\ntool_call(room='厨房', on=True)\n```"
        state = compiler.compile(_CALLS)()
        self.write(state, [*tokenizer.encode("set_lights\n"), *tokenizer.encode(body)])
        assert state.complete

    def test_forced_tokens_change_nothing_but_the_number_of_steps(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        for constraint in (_WORDS, _CALLS):
            start = compiler.compile(constraint)
            for seed in range(_WALKS):
                slowly = self.walk(start, tokenizer, seed, fast=False)
                assert self.walk(start, tokenizer, seed, fast=True) == slowly

    def test_a_forced_token_is_all_that_is_allowed(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        state = compiler.compile(_CALLS)()
        forced = list(state.forced())
        assert forced[:2] == tokenizer.encode("set_lights\n")[:2]
        for token_id in forced:
            assert np.flatnonzero(self.mask(state, tokenizer)).tolist() == [token_id]
            state.accept(token_id)

    def test_no_special_token_is_ever_allowed(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        reserved = [0, 1, 2, *map(tokenizer.special_id, SpecialToken)]
        for constraint in (_WORDS, _CALLS):
            state = compiler.compile(constraint)()
            while not state.finished:
                mask = self.mask(state, tokenizer)
                assert not mask[reserved].any()
                state.accept(int(np.flatnonzero(mask)[-1]))
            assert not self.mask(state, tokenizer).any()

    def test_a_token_that_is_not_allowed_is_refused(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        for token_id in (encode_continuation(tokenizer, "x")[0], 2):
            state = compiler.compile(_WORDS)()
            with _raises(InvalidConstraintError):
                state.accept(token_id)

    def test_two_replies_do_not_know_of_each_other(
        self, compiler: ConstraintCompiler, tokenizer: Tokenizer
    ) -> None:
        start = compiler.compile(_WORDS)
        first, second = start(), start()
        self.write(first, encode_continuation(tokenizer, "是"))
        assert first.finished
        assert not second.complete
        self.write(second, encode_continuation(tokenizer, "不是"))
        assert second.finished

    def test_threads_may_share_it(self, compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
        constraints: list[Constraint | ToolCalls] = [_WORDS, _CALLS, Choice(["a", "b"])] * 8

        def write(number: int) -> str:
            return self.walk(compiler.compile(constraints[number]), tokenizer, seed=1)

        with ThreadPoolExecutor(max_workers=4) as threads:
            written = list(threads.map(write, range(len(constraints))))
        assert written == written[:3] * 8

    def walk(
        self, start: StartConstraint, tokenizer: Tokenizer, seed: int, *, fast: bool = False
    ) -> str:
        """Choose among what is allowed, by the seed; `fast` takes forced tokens at once."""
        choose, state, written = random.Random(seed), start(), list[int]()  # noqa: S311
        while not state.finished and len(written) < _LONGEST:
            ids = np.flatnonzero(self.mask(state, tokenizer)).tolist()
            if state.complete and choose.random() < 0.5:
                break
            token_id = ids[0] if len(ids) == 1 else choose.choice(ids)
            state.accept(token_id)
            written.append(token_id)
            if fast:
                for each in list(state.forced()):
                    state.accept(each)
                    written.append(each)
        assert state.complete
        text = tokenizer.decode([*encode_continuation(tokenizer, "|"), *written])
        return text[1:].removeprefix(dummy_prefix(tokenizer))

    @staticmethod
    def write(state: ConstraintState, token_ids: Sequence[int]) -> None:
        """Accept ids one by one."""
        for token_id in token_ids:
            state.accept(token_id)

    @staticmethod
    def mask(state: ConstraintState, tokenizer: Tokenizer) -> BoolArray:
        """What is allowed now, written over what stood there."""
        allowed = np.random.default_rng(0).random(tokenizer.vocab_size) < 0.5
        state.fill_mask(allowed)
        return allowed


@contextmanager
def _raises(error: type[Exception]) -> Iterator[None]:
    # Not pytest.raises: this package is installed without pytest too.
    try:
        yield
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
