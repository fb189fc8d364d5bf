from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.domain.chat import Message
from glm3sdk.domain.dataset import Conversation, parse_conversation
from glm3sdk.domain.labels import IGNORED_LABEL, Turn, join_turns, shifted_labels
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.services.examples import (
    Example,
    bucketed_epoch,
    collate,
    encode_conversation,
    encode_training,
    join,
)
from glm3sdk.testing import CharacterTokenizer


def test_labels_agree_with_the_official_preprocessing(shared_data: Path):
    rows = (shared_data / "tokenizer" / "golden.jsonl").read_text("utf-8").splitlines()
    (row,) = [row for row in map(json.loads, rows) if row["kind"] == "train_tool"]
    tokenizer = SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")
    system = (
        "Answer the following questions as best as you can. You have access to the following tools:"
    )
    example = encode_conversation(
        [
            Message.system(system, tools=["tools"]),
            Message.user("content"),
            Message.assistant("content"),
            Message.assistant("```python\ntool_call()\n```", metadata="name"),
            Message.observation("observation"),
            Message.assistant("content"),
        ],
        tokenizer,
    )
    ids = row["ids_official_indent4_reference"]
    assert list(example.input_ids) == ids[: len(example)]
    # The published labels were made with the tools on one line: what follows them agrees.
    trained = [label for label in row["labels_mf"] if label != IGNORED_LABEL]
    assert [label for label in example.labels if label != IGNORED_LABEL] == trained
    for position, label in enumerate(example.labels[:-1]):
        assert label in (IGNORED_LABEL, example.input_ids[position + 1])


def test_a_published_record_gives_the_official_tokens_and_labels(shared_data: Path):
    rows = (shared_data / "tokenizer" / "golden.jsonl").read_text("utf-8").splitlines()
    (row,) = [row for row in map(json.loads, rows) if row["kind"] == "train_tool"]
    tokenizer = SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")
    record = parse_conversation(json.dumps(row["item"]).encode(), line=1)
    assert isinstance(record, Conversation)
    example = encode_training(record, tokenizer)
    official = collate([example], seq_length=64)
    assert official.input_ids[0].tolist() == row["ids_official_indent4_reference"]
    trained = [label for label in row["labels_mf"] if label != IGNORED_LABEL]
    assert [label for label in official.labels[0].tolist() if label != IGNORED_LABEL] == trained


def test_real_tool_records_train_what_the_assistant_wrote_and_nothing_else(shared_data: Path):
    tokenizer = SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")
    roles = {tokenizer.special_id(SpecialToken(f"<|{name}|>")): name for name in ROLES}
    lines = (shared_data / "toolalpaca" / "tool_alpaca.jsonl").read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        record = parse_conversation(line, line=number)
        assert isinstance(record, Conversation)
        example = encode_training(record, tokenizer)
        labels, role = example.labels, ""
        assert example.input_ids[-1] == 2
        for position, token in enumerate(example.input_ids[:-1]):
            role = roles.get(token, role)
            wanted = example.input_ids[position + 1] if role == "assistant" else IGNORED_LABEL
            assert labels[position] == wanted
        assert labels[-1] == IGNORED_LABEL


ROLES = ("system", "user", "assistant", "observation")


def labelled(turns: list[Turn]) -> tuple[list[int], list[int]]:
    tokens, learned = join_turns([8, 9], turns, eos_id=0)
    return tokens, shifted_labels(tokens, learned)


def test_the_end_of_a_sequence_is_learned_only_after_the_assistant():
    turns = [Turn(10, (1, 2), False), Turn(11, (3,), True), Turn(10, (4,), False)]
    tokens, labels = labelled(turns)
    assert tokens == [8, 9, 10, 1, 2, 11, 3, 10, 4, 0]
    assert labels == [-100, -100, -100, -100, -100, 3, 10, -100, -100, -100]
    assert labelled(turns[:2])[1] == [-100, -100, -100, -100, -100, 3, 0, -100]


def test_a_call_after_a_thought_learns_the_role_that_opens_it():
    _, labels = labelled([Turn(11, (3,), True), Turn(11, (4, 5), True), Turn(12, (6,), False)])
    assert labels == [-100, -100, 3, 11, 4, 5, 12, -100, -100, -100]


def test_an_assistant_turn_that_is_not_trained_does_not_learn_what_follows_it():
    _, labels = labelled([Turn(11, (3,), False), Turn(11, (4,), True)])
    assert labels == [-100, -100, -100, -100, 4, 0, -100]


def test_a_cut_sequence_does_not_learn_the_token_that_was_cut_off():
    examples = [Example((1, 2, 3), ((1, 3),)), Example((5, 6), ((1, 2),))]
    assert examples[0].labels == (2, 3, -100)
    batch = collate(examples, seq_length=2)
    np.testing.assert_array_equal(batch.input_ids, [[1, 2], [5, 6]])
    np.testing.assert_array_equal(batch.labels, [[2, -100], [6, -100]])
    assert examples[0].cut(2) == Example((1, 2), ((1, 2),), cut_off=1)
    assert examples[0].cut(1).learned == ()


def test_rows_beyond_the_examples_are_padding_without_labels():
    batch = collate([Example((1, 2), ((1, 2),))], seq_length=3, batch_size=2)
    np.testing.assert_array_equal(batch.input_ids, [[1, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.labels, [[2, -100, -100], [-100, -100, -100]])


def test_joined_examples_keep_their_labels_and_learn_nothing_across_the_border():
    first, second = Example((1, 2, 3), ((1, 3),)), Example((7, 8, 9), ((2, 3),), cut_off=4)
    joined = join([first, second])
    assert joined.input_ids == (1, 2, 3, 7, 8, 9)
    assert joined.labels == first.labels + second.labels
    assert joined.cut_off == 4


@pytest.fixture
def examples() -> list[Example]:
    tokenizer = CharacterTokenizer()
    texts = ["a" * length for length in range(1, 20)]
    return [
        encode_conversation([Message.user(text), Message.assistant(text)], tokenizer)
        for text in texts
    ]


def test_an_epoch_visits_every_example(examples: list[Example]):
    batches = bucketed_epoch(examples, buckets=(32, 64), batch_tokens=64, seed=0)
    seen: set[tuple[int, ...]] = set()
    for batch in batches:
        assert batch.input_ids.shape in {(2, 32), (1, 64)}
        seen |= {tuple(row[row != 0]) for row in batch.input_ids}
    assert seen == {example.input_ids for example in examples}


def test_the_seed_decides_the_order(examples: list[Example]):
    def first(seed: int) -> list[bytes]:
        batches = bucketed_epoch(examples, buckets=(64,), batch_tokens=64, seed=seed)
        return [batch.input_ids.tobytes() for batch in batches]

    assert first(1) == first(1)
    assert first(1) != first(2)
