from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import pytest

from glm3sdk.domain.chat import Message
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import ServiceClosedError, SlotError, UserError
from glm3sdk.ports.model_runtime import DecodeSession, ModelRuntime
from glm3sdk.ports.slots import SlotTable
from glm3sdk.testing.runtime_contract import ModelRuntimeContract
from glm3sdk.testing.scripted_runtime import Copy, Decode, Prefill, ScriptedRuntime, Truncate

EOS = 2
CONFIG = attrs.evolve(Glm3Config.preset("tiny"), padded_vocab_size=400, seq_length=64)


class BytesTokenizer:
    """Text as its bytes, special tokens above them: enough to write a script."""

    vocab_size = 300
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in token_ids if 3 <= i < 259).decode(errors="replace")

    def special_id(self, token: SpecialToken) -> int:
        return 259 + list(SpecialToken).index(token)

    def piece(self, token_id: int) -> str:
        return str(token_id)


def script(*replies: object) -> ScriptedRuntime:
    return ScriptedRuntime(*replies, tokenizer=BytesTokenizer(), config=CONFIG)


def play(session: DecodeSession, slot: int, prompt: list[int]) -> list[int]:
    """Prefill a prompt and follow the likeliest tokens up to eos."""
    played, logits = [], session.prefill(slot, prompt)
    while (token_id := int(logits.argmax())) != EOS:
        played.append(token_id)
        logits = session.decode([slot], [token_id])[0]
    return played


class TestScriptedRuntime(ModelRuntimeContract):
    @pytest.fixture
    def runtime(self) -> ModelRuntime:
        return script("你好")


def test_a_text_is_played_as_the_model_writes_a_turn() -> None:
    session = script("你好").start_decode(slots=1, max_seq_length=64)
    assert BytesTokenizer().decode(play(session, 0, [260, 7])) == "\n你好"


def test_a_reply_that_stands_in_the_prompt_is_played_from_its_beginning() -> None:
    session = script([5, 5, 6]).start_decode(slots=1, max_seq_length=64)
    assert play(session, 0, [5, 5, 6, 9]) == [5, 5, 6]


def test_turns_tool_calls_and_ids_make_up_a_reply() -> None:
    tokenizer = BytesTokenizer()
    reply = [
        "查一下",
        SpecialToken.ASSISTANT,
        Message.assistant("tool_call()", metadata="get_weather"),
        SpecialToken.OBSERVATION,
        17,
    ]
    session = script(reply).start_decode(slots=1, max_seq_length=64)
    assert play(session, 0, [260]) == [
        *tokenizer.encode("\n查一下"),
        tokenizer.special_id(SpecialToken.ASSISTANT),
        *tokenizer.encode("get_weather\ntool_call()"),
        tokenizer.special_id(SpecialToken.OBSERVATION),
        17,
    ]


def test_replies_come_in_order_and_then_from_the_first_again() -> None:
    session = script([11], [12, 13]).start_decode(slots=1, max_seq_length=64)
    played = []
    for _ in range(3):
        session.truncate(0, 0)
        played.append(play(session, 0, [260]))
    assert played == [[11], [12, 13], [11]]


def test_a_prompt_in_chunks_is_one_request() -> None:
    runtime = script([11], [12])
    session = runtime.start_decode(slots=1, max_seq_length=64)
    session.prefill(0, [260, 261])
    assert play(session, 0, [262]) == [11]


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_second_turn_over_a_reused_prefix_plays_the_next_reply(kept: int) -> None:
    session = script([11, 12], [13]).start_decode(slots=1, max_seq_length=64)
    assert play(session, 0, [260, 261]) == [11, 12]
    session.truncate(0, kept)
    session.prefill(0, [262])
    assert play(session, 0, [263]) == [13]


def test_a_second_turn_that_appends_to_all_of_the_first_plays_the_next_reply() -> None:
    session = script([11, 12], [13]).start_decode(slots=1, max_seq_length=64)
    assert play(session, 0, [260, 261]) == [11, 12]
    assert play(session, 0, [EOS, 260]) == [13]


def test_requests_in_turns_over_slots_keep_their_replies() -> None:
    session = script([11, 12], [13, 14]).start_decode(slots=2, max_seq_length=64)
    firsts = [int(session.prefill(slot, [260]).argmax()) for slot in (0, 1)]
    assert firsts == [11, 13]
    assert session.decode([1, 0], [13, 11]).argmax(axis=-1).tolist() == [14, 12]
    assert session.decode([0, 1], [12, 14]).argmax(axis=-1).tolist() == [EOS, EOS]


def test_a_slot_copied_after_the_prompt_plays_the_same_reply_and_a_shared_prefix_the_next() -> None:
    session = script([11, 12], [13]).start_decode(slots=3, max_seq_length=64)
    session.prefill(0, [260, 261])
    session.copy(0, 1, 2)
    session.copy(0, 2, 1)
    assert session.decode([1], [11])[0].argmax() == 12
    assert play(session, 2, [262]) == [13]


def test_guessed_tokens_are_verified_in_one_prefill() -> None:
    session = script([11, 12, 13]).start_decode(slots=1, max_seq_length=64)
    rows = session.prefill(0, [260, 11, 12, 99], all_logits=True)
    assert rows.argmax(axis=-1).tolist() == [11, 12, 13, 11]


def test_a_reply_goes_on_when_wrong_guesses_are_cut_off() -> None:
    session = script([11, 12, 13, 14], [15]).start_decode(slots=1, max_seq_length=64)
    session.prefill(0, [260])
    for length, guess, right in ((3, [11, 12, 99], [12, 13]), (5, [13, 14, 98], [14, EOS])):
        rows = session.prefill(0, guess, all_logits=True)
        assert rows.argmax(axis=-1).tolist()[:2] == right
        session.truncate(0, length)
    session.truncate(0, 5)
    assert play(session, 0, [261]) == [15]


def test_sampling_cannot_leave_the_script_by_accident() -> None:
    logits = script([11]).start_decode(slots=1, max_seq_length=64).prefill(0, [260])
    chances = np.exp((logits - logits.max()) / 2.0)
    assert 1 - chances[11] / chances.sum() < 1e-12


def test_calls_are_recorded_and_refused_ones_are_not() -> None:
    runtime = script([11])
    session = runtime.start_decode(slots=2, max_seq_length=8)
    session.prefill(0, np.array([4, 5], np.int32))
    session.decode([0], [11])
    session.truncate(0, 1)
    session.copy(0, 1, 1)
    with pytest.raises(SlotError):
        session.prefill(0, [5000])
    assert runtime.calls == [Prefill(0, (4, 5)), Decode((0,), (11,)), Truncate(0, 1), Copy(0, 1, 1)]


def test_a_script_without_replies_is_refused() -> None:
    with pytest.raises(UserError, match="at least one reply"):
        script()


def test_a_reply_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"id 400 is outside 0\.\.399"):
        script([1, 400])


def test_the_vocabulary_fits_the_tokenizer_when_no_config_is_given() -> None:
    assert ScriptedRuntime("x", tokenizer=BytesTokenizer()).config.padded_vocab_size == 300


def test_a_script_needs_no_tokenizer_of_its_own() -> None:
    session = ScriptedRuntime("hi").start_decode(slots=1, max_seq_length=8)
    assert len(play(session, 0, [5])) == len("\nhi")


def test_a_closed_runtime_starts_no_session() -> None:
    runtime = script([11])
    runtime.close()
    runtime.close()
    with pytest.raises(ServiceClosedError, match="closed"):
        runtime.start_decode(slots=1, max_seq_length=8)


def test_capabilities_name_the_runtime() -> None:
    assert script([11]).capabilities.name == "scripted"


@pytest.mark.parametrize("size", [{"slots": "2"}, {"slots": 1.5}, {"max_seq_length": None}])
def test_a_size_that_is_no_integer_is_refused(size: dict[str, object]) -> None:
    with pytest.raises(SlotError, match="must be an integer"):
        SlotTable(CONFIG, **{"slots": 1, "max_seq_length": 8, **size})


def test_ids_that_make_no_row_are_refused() -> None:
    table = SlotTable(CONFIG, slots=1, max_seq_length=8)
    for ids in ([[1], [1, 2]], ["a"], [2**70]):
        with pytest.raises(SlotError, match="row of integers"):
            table.check_prefill(0, ids)


def test_checking_a_call_changes_no_length() -> None:
    table = SlotTable(CONFIG, slots=2, max_seq_length=8)
    table.check_prefill(0, [1, 2])
    table.check_decode([0, 1], [1, 2])
    table.advance(0, 3)
    table.check_copy(0, 1, 2)
    assert (table.length(0), table.length(1)) == (3, 0)
