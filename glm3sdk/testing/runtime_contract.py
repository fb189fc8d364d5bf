"""The contract of model runtimes: tests that every adapter and every fake passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from glm3sdk.errors import ServiceClosedError, SlotError
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.ports.model_runtime import DecodeSession, ModelRuntime


class ModelRuntimeContract:
    """Derive a test class from it and give it a `runtime` fixture.

    The model needs a seq_length of at least `max_seq_length` and a vocabulary of at least
    16. Every session of these tests has the same size, so a runtime compiles once.

    Attributes:
        tolerance: largest difference, absolute and relative, between logits of the same
            tokens taken by different ways; float32 sums in another order differ by 1e-5.
        distinct: smallest largest difference between logits of different tokens.
    """

    tolerance = 1e-4
    distinct = 1e-3
    session_slots = 3
    max_seq_length = 16

    @pytest.fixture
    def runtime(self) -> ModelRuntime:
        """A loaded runtime; the tests leave it open."""
        raise NotImplementedError("override the `runtime` fixture")

    @pytest.fixture
    def session(self, runtime: ModelRuntime) -> Iterator[DecodeSession]:
        """A fresh session of the runtime."""
        session = self.start(runtime)
        yield session
        session.close()

    @pytest.fixture
    def ids(self, runtime: ModelRuntime) -> list[int]:
        """Eight token ids, the lowest and the highest of the vocabulary among them."""
        vocab_size = runtime.config.padded_vocab_size
        middle = np.random.default_rng(3).choice(np.arange(1, vocab_size - 1), 6, replace=False)
        return [0, *middle.tolist(), vocab_size - 1]

    def start(self, runtime: ModelRuntime) -> DecodeSession:
        """Start a session of this contract's size."""
        return runtime.start_decode(slots=self.session_slots, max_seq_length=self.max_seq_length)

    def assert_same(self, actual: FloatArray, expected: FloatArray) -> None:
        """Logits of the same tokens."""
        np.testing.assert_allclose(actual, expected, atol=self.tolerance, rtol=self.tolerance)

    def assert_distinct(self, actual: FloatArray, expected: FloatArray) -> None:
        """Logits of different tokens."""
        assert np.abs(actual - expected).max() > self.distinct

    def test_a_session_has_the_size_that_was_asked_for(self, session: DecodeSession) -> None:
        assert (session.slots, session.max_seq_length) == (self.session_slots, self.max_seq_length)
        assert [session.length(slot) for slot in range(session.slots)] == [0] * session.slots

    def test_logits_are_finite_float32_in_the_documented_shapes(
        self, runtime: ModelRuntime, session: DecodeSession, ids: list[int]
    ) -> None:
        vocab_size = runtime.config.padded_vocab_size
        last = session.prefill(0, ids[:3])
        rows = session.prefill(1, ids[:3], all_logits=True)
        one_row = session.prefill(2, ids[:1], all_logits=True)
        step = session.decode([1, 0], ids[3:5])
        assert last.shape == (vocab_size,)
        assert rows.shape == (3, vocab_size)
        assert one_row.shape == (1, vocab_size)
        assert step.shape == (2, vocab_size)
        for logits in (last, rows, one_row, step):
            assert logits.dtype == np.float32
            assert np.isfinite(logits).all()
        assert [session.length(slot) for slot in range(3)] == [4, 4, 1]

    def test_returned_logits_stay_as_they_are_during_later_calls(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        first = session.prefill(0, ids[:3])
        step = session.decode([0], ids[3:4])
        kept = first.copy(), step.copy()
        session.prefill(1, ids[4:])
        session.decode([0], ids[4:5])
        np.testing.assert_array_equal(first, kept[0])
        np.testing.assert_array_equal(step, kept[1])

    def test_ids_may_be_a_list_a_tuple_or_an_array(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids)
        self.assert_same(session.prefill(1, tuple(ids)), expected)
        self.assert_same(session.prefill(2, np.array(ids, np.int32)), expected)
        step = session.decode(np.array([0, 1]).tolist(), np.array(ids[:2], np.int32))
        self.assert_same(session.decode((2,), (ids[0],))[0], step[0])

    def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids)
        session.prefill(1, ids[:3])
        session.prefill(1, ids[3:4])
        self.assert_same(session.prefill(1, ids[4:]), expected)

    def test_a_prompt_token_by_token_gives_the_logits_of_the_whole(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids, all_logits=True)
        self.assert_same(session.prefill(1, ids[:1]), expected[0])
        for position, token_id in enumerate(ids[1:], 1):
            self.assert_same(session.decode([1], [token_id])[0], expected[position])

    def test_all_logits_end_with_the_logits_of_the_last_token(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        rows = session.prefill(0, ids, all_logits=True)
        self.assert_same(session.prefill(1, ids), rows[-1])
        session.prefill(2, ids[:5])
        self.assert_same(session.prefill(2, ids[5:], all_logits=True), rows[5:])

    def test_logits_depend_on_every_token_and_on_their_order(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        logits = session.prefill(0, ids)
        self.assert_distinct(session.prefill(1, [ids[1], ids[0], *ids[2:]]), logits)
        self.assert_distinct(session.prefill(2, [ids[3], *ids[1:]]), logits)

    def test_decoding_several_slots_equals_decoding_each_alone(
        self, session: DecodeSession, runtime: ModelRuntime, ids: list[int]
    ) -> None:
        prompts = [ids[:2], ids[2:7], ids[4:]]
        for slot, prompt in enumerate(prompts):
            session.prefill(slot, prompt)
        together = session.decode([2, 0, 1], ids[:3])
        alone = self.start(runtime)
        for slot, token_id, row in zip([2, 0, 1], ids[:3], together, strict=True):
            alone.truncate(0, 0)
            alone.prefill(0, prompts[slot])
            self.assert_same(row, alone.decode([0], [token_id])[0])
        alone.close()

    def test_what_one_slot_does_leaves_the_others_alone(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids[:5])
        session.truncate(0, 0)
        session.prefill(0, ids[:4])
        session.prefill(1, ids)
        session.decode([1], [ids[0]])
        session.truncate(1, 2)
        session.copy(1, 2, 1)
        assert [session.length(slot) for slot in range(3)] == [4, 2, 1]
        self.assert_same(session.decode([0], [ids[4]])[0], expected)

    def test_a_truncated_slot_goes_on_as_if_the_rest_had_never_been(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids[:3] + ids[5:])
        session.prefill(1, ids)
        session.decode([1], [ids[2]])
        session.truncate(1, 3)
        assert session.length(1) == 3
        self.assert_same(session.prefill(1, ids[5:]), expected)

    def test_guessed_tokens_are_verified_and_wrong_ones_leave_no_trace(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids, all_logits=True)
        session.prefill(1, ids[:3])
        rows = session.prefill(1, [ids[3], ids[4], ids[0], ids[1]], all_logits=True)
        self.assert_same(rows[:2], expected[3:5])
        session.truncate(1, 5)
        self.assert_same(session.prefill(1, ids[5:7], all_logits=True), expected[5:7])
        session.truncate(1, 6)
        self.assert_same(session.decode([1], ids[6:7])[0], expected[6])

    def test_a_slot_truncated_to_nothing_is_like_new(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, ids[:4])
        session.prefill(1, ids[::-1])
        session.truncate(1, 0)
        assert session.length(1) == 0
        self.assert_same(session.prefill(1, ids[:4]), expected)

    def test_a_copied_prefix_serves_both_slots_apart(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        source = session.prefill(0, [*ids[:4], ids[6]])
        target = session.prefill(1, [*ids[:4], ids[7]])
        session.truncate(0, 4)
        session.prefill(2, ids[::-1])
        session.copy(0, 2, 4)
        assert session.length(2) == 4
        self.assert_same(session.decode([2], [ids[7]])[0], target)
        self.assert_same(session.decode([0], [ids[6]])[0], source)

    def test_part_of_a_slot_can_be_copied_and_a_slot_onto_itself(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, [*ids[:2], ids[5]])
        whole = session.prefill(1, ids)
        session.truncate(1, 7)
        session.copy(1, 2, 2)
        assert (session.length(1), session.length(2)) == (7, 2)
        self.assert_same(session.decode([1], [ids[7]])[0], whole)
        session.copy(1, 1, 2)
        assert session.length(1) == 2
        for row in session.decode([1, 2], [ids[5], ids[5]]):
            self.assert_same(row, expected)

    def test_a_slot_can_be_filled_to_its_last_place_and_no_further(
        self, session: DecodeSession, ids: list[int]
    ) -> None:
        expected = session.prefill(0, (ids * 2)[: self.max_seq_length])
        session.prefill(1, (ids * 2)[: self.max_seq_length - 1])
        row = session.decode([1], [(ids * 2)[self.max_seq_length - 1]])[0]
        self.assert_same(row, expected)
        with pytest.raises(SlotError, match=f"at most {self.max_seq_length}"):
            session.decode([1], ids[:1])
        with pytest.raises(SlotError, match=f"at most {self.max_seq_length}"):
            session.prefill(0, ids[:1])
        with pytest.raises(SlotError, match=f"at most {self.max_seq_length}"):
            session.prefill(2, ids * 3)

    @pytest.mark.parametrize(
        ("method", "arguments", "message"),
        [
            ("prefill", (3, [1]), r"slot 3 is outside 0\.\.2"),
            ("prefill", (-1, [1]), r"slot -1 is outside 0\.\.2"),
            ("prefill", (0, []), "at least one"),
            ("prefill", (0, [1, -1]), "token id -1"),
            ("prefill", (0, [0.5]), "integers"),
            ("prefill", (0, [[1, 2], [3, 4]]), "integers"),
            ("decode", ([0, 3], [1, 2]), "slot 3"),
            ("decode", ([0, 1, 0], [1, 2, 3]), "slot 0 is named twice"),
            ("decode", ([0, 1], [1, -1]), "token id -1"),
            ("decode", ([0, 1], [1]), "one id a slot"),
            ("decode", ([], []), "at least one"),
            ("length", (3,), "slot 3"),
            ("truncate", (3, 0), "slot 3"),
            ("truncate", (0, 5), r"length=5 is outside 0\.\.4"),
            ("truncate", (0, -1), "length=-1"),
            ("copy", (0, 3, 1), "slot 3"),
            ("copy", (-1, 0, 1), "slot -1"),
            ("copy", (1, 0, 3), r"length=3 is outside 0\.\.2"),
        ],
    )
    def test_a_refused_call_leaves_every_slot_as_it_was(
        self,
        session: DecodeSession,
        ids: list[int],
        method: str,
        arguments: tuple[Any, ...],
        message: str,
    ) -> None:
        expected = [session.prefill(0, ids[:5]), session.prefill(1, ids[:3])]
        session.truncate(0, 4)
        session.truncate(1, 2)
        with pytest.raises(SlotError, match=message):
            getattr(session, method)(*arguments)
        assert [session.length(slot) for slot in range(3)] == [4, 2, 0]
        rows = session.decode([0, 1], [ids[4], ids[2]])
        for row, logits in zip(rows, expected, strict=True):
            self.assert_same(row, logits)

    def test_an_id_beyond_the_vocabulary_is_refused(
        self, runtime: ModelRuntime, session: DecodeSession
    ) -> None:
        beyond = runtime.config.padded_vocab_size
        with pytest.raises(SlotError, match=f"token id {beyond} is outside"):
            session.prefill(0, [1, beyond])
        with pytest.raises(SlotError, match=f"token id {beyond} is outside"):
            session.decode([0, 1], [1, beyond])
        assert (session.length(0), session.length(1)) == (0, 0)

    @pytest.mark.parametrize("slots", [0, -1])
    def test_a_session_needs_a_slot(self, runtime: ModelRuntime, slots: int) -> None:
        with pytest.raises(SlotError, match=f"slots={slots}"):
            runtime.start_decode(slots=slots, max_seq_length=self.max_seq_length)

    def test_a_session_is_no_longer_than_the_model_allows(self, runtime: ModelRuntime) -> None:
        too_long = runtime.config.seq_length + 1
        for length in (0, -1, too_long):
            with pytest.raises(SlotError, match=f"max_seq_length={length}"):
                runtime.start_decode(slots=1, max_seq_length=length)

    def test_two_sessions_at_once_do_not_see_each_other(
        self, runtime: ModelRuntime, ids: list[int]
    ) -> None:
        one, two = self.start(runtime), self.start(runtime)
        expected = one.prefill(0, ids[:5])
        one.truncate(0, 4)
        two.prefill(0, ids[::-1])
        assert (one.length(0), two.length(0)) == (4, 8)
        self.assert_same(one.decode([0], [ids[4]])[0], expected)
        one.close()
        two.truncate(0, 0)
        self.assert_same(two.prefill(0, ids[:5]), expected)
        two.close()

    def test_a_closed_session_says_so(self, runtime: ModelRuntime, ids: list[int]) -> None:
        session = self.start(runtime)
        session.prefill(0, ids)
        session.close()
        session.close()
        for call in (
            lambda: session.prefill(0, ids),
            lambda: session.decode([0], ids[:1]),
            lambda: session.length(0),
            lambda: session.truncate(0, 0),
            lambda: session.copy(0, 1, 0),
        ):
            with pytest.raises(ServiceClosedError, match="closed"):
                call()
