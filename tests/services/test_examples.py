from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.domain.chat import Message
from glm3sdk.domain.labels import IGNORED_LABEL, Turn, conversation_labels
from glm3sdk.services.examples import Example, bucketed_batches, collate, encode_conversation
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


def test_the_end_of_a_sequence_is_learned_only_after_the_assistant():
    turns = [Turn(10, (1, 2), False), Turn(11, (3,), True), Turn(10, (4,), False)]
    tokens, labels = conversation_labels([8, 9], turns, eos_id=0)
    assert tokens == [8, 9, 10, 1, 2, 11, 3, 10, 4]
    assert labels == [-100, -100, -100, -100, -100, 3, 10, -100, -100]


def test_a_cut_sequence_does_not_learn_the_token_that_was_cut_off():
    batch = collate([Example((1, 2, 3), (2, 3, 4)), Example((5,), (6,))], seq_length=2)
    np.testing.assert_array_equal(batch.input_ids, [[1, 2], [5, 0]])
    np.testing.assert_array_equal(batch.labels, [[2, -100], [6, -100]])


@pytest.fixture
def examples() -> list[Example]:
    tokenizer = CharacterTokenizer()
    texts = ["a" * length for length in range(1, 20)]
    return [
        encode_conversation([Message.user(text), Message.assistant(text)], tokenizer)
        for text in texts
    ]


def test_an_epoch_visits_every_example(examples: list[Example]):
    batches = bucketed_batches(examples, buckets=(32, 64), batch_tokens=64, seed=0)
    seen: set[tuple[int, ...]] = set()
    for _ in range(len(examples)):
        batch = next(batches)
        assert batch.input_ids.shape in {(2, 32), (1, 64)}
        seen |= {tuple(row[row != 0]) for row in batch.input_ids}
    assert seen == {example.input_ids for example in examples}


def test_the_seed_decides_the_order(examples: list[Example]):
    def first(seed: int) -> list[bytes]:
        batches = bucketed_batches(examples, buckets=(64,), batch_tokens=64, seed=seed)
        return [next(batches).input_ids.tobytes() for _ in range(19)]

    assert first(1) == first(1)
    assert first(1) != first(2)
