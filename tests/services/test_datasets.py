from __future__ import annotations

import json
import logging
from pathlib import Path

import attrs
import numpy as np
import pytest
from services.memory_lines import MemoryLines

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.config.schema import DataFormat, DataSettings
from glm3sdk.domain.chat import Message
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import InvalidDatasetError, InvalidTokenizerError
from glm3sdk.ports.line_source import Line
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import open_dataset
from glm3sdk.services.examples import encode_conversation
from glm3sdk.services.record_layout import RecordEncoder, RecordLayout, training_layout
from glm3sdk.testing import CharacterTokenizer

TOKENIZER = CharacterTokenizer()
PREFIX = [TOKENIZER.special_id(SpecialToken.GMASK), TOKENIZER.special_id(SpecialToken.SOP)]
PAIRS = [{"content": "a" * size, "summary": "b" * (size + 1)} for size in range(1, 9)]
ADGEN = DataSettings(
    path="data.jsonl", format=DataFormat.ADGEN, max_source_length=6, max_target_length=5
)
CHAT = DataSettings(path="data.jsonl", format=DataFormat.ADGEN_CHAT, max_seq_length=40)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared_data / "tokenizer" / "tokenizer.model")


def test_the_model_card_record_fills_64_and_127_as_published(
    shared_data: Path, published: SentencePieceTokenizer
):
    card = (shared_data.parent / "spec" / "reference-model-card.zh.md").read_text("utf-8")
    record = next(json.loads(line) for line in card.splitlines() if line.startswith('{"content"'))
    settings = DataSettings(
        path="card", format=DataFormat.ADGEN, max_source_length=64, max_target_length=127
    )
    dataset = open_dataset(MemoryLines([record]), settings, published, seq_length=192)
    batch = dataset.batch([0])
    content, summary = published.encode(record["content"]), published.encode(record["summary"])
    assert (len(content), len(summary)) == (36, 56)
    given = 2 + 36
    padding = 192 - given - 56 - 1
    assert batch.input_ids[0].tolist() == [64790, 64792, *content, *summary, 2] + [0] * padding
    labels = [-100] * (given - 1) + [*summary, 2] + [-100] * (padding + 1)
    assert batch.labels[0].tolist() == labels


def test_adgen_cuts_source_and_target_and_always_learns_the_end():
    dataset = open_dataset(MemoryLines([PAIRS[7]]), ADGEN, TOKENIZER)
    assert dataset.seq_length == 12
    batch = dataset.batch([0])
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    assert batch.input_ids.tolist() == [[*PREFIX, *[a] * 4, *[b] * 5, 2]]
    assert batch.labels.tolist() == [[*[-100] * 5, *[b] * 5, 2, -100]]
    assert batch.input_ids.dtype == batch.labels.dtype == np.int32
    assert dataset.report.truncated == 1


def test_the_chat_layout_of_a_pair_is_the_conversation_of_chat(
    shared_data: Path, published: SentencePieceTokenizer
):
    lines = (shared_data / "advertisegen" / "dev.json").read_bytes().splitlines()[:50]
    layout = RecordLayout(format=DataFormat.ADGEN_CHAT)
    for tokenizer in (published, TOKENIZER):
        encoder = RecordEncoder(layout, tokenizer)
        for line in lines:
            record = json.loads(line)
            messages = [Message.user(record["content"]), Message.assistant(record["summary"])]
            expected = encode_conversation(messages, tokenizer)
            assert encoder.encode(Line(1, 0, len(line), line)) == expected


def test_real_records_keep_their_labels_in_every_layout(
    shared_data: Path, published: SentencePieceTokenizer
):
    multiturn = DataSettings(path="data.jsonl", format=DataFormat.MULTITURN, max_seq_length=1024)
    chat = attrs.evolve(CHAT, max_seq_length=160)
    packed = DataSettings(
        path="data.jsonl", format=DataFormat.ADGEN_CHAT, max_seq_length=512, pack=True
    )
    for folder, file, settings in [
        ("toolalpaca", "tool_alpaca.jsonl", multiturn),
        ("advertisegen", "dev.json", chat),
        ("advertisegen", "dev.json", packed),
    ]:
        source = JsonLinesFile(shared_data / folder / file)
        dataset = open_dataset(source, settings, published)
        for batch in dataset.in_order(4):
            assert batch.input_ids.shape == (4, settings.max_seq_length)
            learned = batch.labels[:, :-1] != -100
            np.testing.assert_array_equal(
                batch.labels[:, :-1][learned], batch.input_ids[:, 1:][learned]
            )
            assert (batch.labels[:, -1] == -100).all()
            assert not (batch.labels == 64790).any()


def test_a_large_file_is_read_again_for_each_batch_and_gives_the_same():
    source = MemoryLines([*PAIRS[:3], b"broken\n", *PAIRS[3:]])
    small = open_dataset(source, CHAT, TOKENIZER)
    assert source.reads == 0
    large = open_dataset(source, CHAT, TOKENIZER, cached_tokens=100)
    for index in (7, 3, 0):
        assert large.example(index) == small.example(index)
    assert source.reads == 3
    assert len(large) == len(small) == 8


def test_a_record_that_changes_during_the_run_is_an_error():
    source = MemoryLines(PAIRS)
    dataset = open_dataset(source, CHAT, TOKENIZER, cached_tokens=0)
    source.data = b"x" * len(source.data)
    with pytest.raises(InvalidDatasetError, match=r"data.jsonl:2: the record has changed"):
        dataset.example(1)


def test_packing_puts_whole_records_together_and_learns_nothing_across_borders():
    alone = open_dataset(MemoryLines(PAIRS), CHAT, TOKENIZER)
    settings = DataSettings(
        path="data.jsonl", format=DataFormat.ADGEN_CHAT, max_seq_length=40, pack=True
    )
    packed = open_dataset(MemoryLines(PAIRS), settings, TOKENIZER)
    # Records have 10, 12, 14, ... 24 tokens.
    assert [len(packed.example(index)) for index in range(len(packed))] == [36, 34, 20, 22, 24]
    first = packed.example(0)
    parts = [alone.example(index) for index in range(3)]
    assert first.input_ids == sum((part.input_ids for part in parts), ())
    assert first.labels == sum((part.labels for part in parts), ())
    assert [first.input_ids[start : start + 2] for start in (0, 10, 22)] == [tuple(PREFIX)] * 3
    learned = sum(packed.example(index).learned_tokens for index in range(len(packed)))
    assert learned == alone.report.trained_tokens


def test_records_that_teach_nothing_are_left_out_unless_asked_for(caplog: pytest.LogCaptureFixture):
    turns = [{"role": "user", "content": "a" * 50}, {"role": "assistant", "content": "b"}]
    lines = [PAIRS[0] | {"messages": turns}, {"messages": turns[1:]}]
    settings = DataSettings(path="data.jsonl", format=DataFormat.MULTITURN, max_seq_length=32)
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(MemoryLines(lines), settings, TOKENIZER)) == 1
    assert "data.jsonl:1: no token of this record is trained" in caplog.text
    kept = open_dataset(MemoryLines(lines), settings, TOKENIZER, keep_masked=True)
    assert len(kept) == 2
    with pytest.raises(InvalidDatasetError, match=r"data.jsonl:1: no token"):
        open_dataset(MemoryLines(lines[:1]), settings, TOKENIZER)


def test_the_last_batch_of_an_evaluation_is_filled_up_without_labels():
    dataset = open_dataset(MemoryLines(PAIRS), CHAT, TOKENIZER, max_records=5)
    batches = list(dataset.in_order(2))
    assert [batch.input_ids.shape for batch in batches] == [(2, 40)] * 3
    assert (batches[-1].labels[0] != -100).any()
    assert (batches[-1].labels[1] == -100).all()
    assert (batches[-1].input_ids[1] == 0).all()


def test_ranks_share_the_batches_of_an_evaluation_and_get_as_many_each():
    dataset = open_dataset(MemoryLines(PAIRS), CHAT, TOKENIZER, max_records=5)
    whole = list(dataset.in_order(2))
    first, second = (list(dataset.in_order(2, rank=rank, world=2)) for rank in range(2))
    assert len(first) == len(second) == 2
    for batch, expected in zip((first[0], second[0], first[1]), whole, strict=True):
        np.testing.assert_array_equal(batch.input_ids, expected.input_ids)
        np.testing.assert_array_equal(batch.labels, expected.labels)
    assert second[1].labels.shape == whole[0].labels.shape
    assert (second[1].labels == -100).all()


def test_an_order_walks_a_dataset():
    dataset = open_dataset(MemoryLines(PAIRS), CHAT, TOKENIZER)
    order = DataOrder(records=len(dataset), batch_size=2, accumulate=2)
    seen = [
        tuple(row[row != 0])
        for step in range(order.steps(1))
        for indices in order.micro_batches(step)
        for row in dataset.batch(indices).input_ids
    ]
    assert sorted(seen) == sorted(dataset.example(index).input_ids for index in range(8))


def test_a_sequence_that_is_not_there_is_an_index_error():
    dataset = open_dataset(MemoryLines(PAIRS), CHAT, TOKENIZER)
    for index in (-1, 8):
        with pytest.raises(IndexError):
            dataset.example(index)


@pytest.mark.parametrize(
    ("changes", "seq_length", "message"),
    [
        ({}, 13, r"seq_length 13 is not max_source_length 6 \+ max_target_length 5 \+ 1 = 12"),
        ({"max_source_length": None}, 12, "max_source_length is not set; set it to 3 or more"),
        ({"max_target_length": None}, 12, "max_target_length is not set; set it to 1 or more"),
        ({"max_source_length": 2}, None, "max_source_length is 2"),
        ({"pack": True}, None, "pack to false, or format to adgen-chat"),
        ({"format": DataFormat.MULTITURN}, None, "max_seq_length is not set"),
        ({"format": DataFormat.ADGEN_CHAT, "max_seq_length": 9}, 8, "seq_length 8 is not"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    changes: dict[str, object], seq_length: int | None, message: str
):
    settings = {
        "path": "train.jsonl",
        "format": DataFormat.ADGEN,
        "max_source_length": 6,
        "max_target_length": 5,
        **changes,
    }
    with pytest.raises(InvalidDatasetError, match=f"train.jsonl: .*{message}"):
        training_layout(DataSettings(**settings), seq_length=seq_length)


def test_the_run_gives_the_length_that_the_data_leaves_open():
    layout = training_layout(DataSettings(path="x"), seq_length=64)
    assert layout.seq_length == 64


def test_a_model_without_room_for_the_vocabulary_or_the_length_is_told_before_reading():
    source = MemoryLines(PAIRS)
    with pytest.raises(InvalidTokenizerError, match="268 ids"):
        open_dataset(source, ADGEN, TOKENIZER, padded_vocab_size=200)
    with pytest.raises(InvalidDatasetError, match="multiple of 16"):
        open_dataset(source, ADGEN, TOKENIZER, multiple_of=16)


def test_half_characters_and_lines_over_the_limit_are_dropped_with_their_line(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    lone = b'{"content": "a\\ud800", "summary": "b"}\n'
    path.write_bytes(lone + b"x" * 200 + b"\n" + json.dumps(PAIRS[0]).encode())
    report = open_dataset(JsonLinesFile(path, max_line_bytes=100), ADGEN, TOKENIZER).report
    assert report.taken == 1
    assert [(group.kind.value, group.first[0].line) for group in report.dropped] == [
        ("unreadable message", 1),
        ("line too long", 2),
    ]
