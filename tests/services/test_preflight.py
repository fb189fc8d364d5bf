from __future__ import annotations

import json

import pytest
from services.memory_lines import MemoryLines

from glm3sdk.config.schema import DataFormat
from glm3sdk.errors import InvalidDatasetError, InvalidTokenizerError
from glm3sdk.services.preflight import (
    DatasetReport,
    LengthSummary,
    inspect_dataset,
    require_multiple,
    require_vocabulary,
)
from glm3sdk.services.record_layout import RecordLayout
from glm3sdk.testing import CharacterTokenizer


def inspect(*lines: object, max_seq_length: int | None = None) -> DatasetReport:
    layout = RecordLayout(format=DataFormat.MULTITURN, max_seq_length=max_seq_length)
    return inspect_dataset(MemoryLines(lines), layout, CharacterTokenizer())


def talk(question: str, answer: str, **more: object) -> dict[str, object]:
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, **more},
    ]
    return {"conversations": turns}


# [gMASK] sop, two roles, two newlines and </s>.
AROUND = 7


def test_a_report_counts_records_and_names_what_was_dropped_and_what_teaches_nothing():
    report = inspect(
        talk("a", "bb"), b"\n", {"conversations": []}, talk("c", "d", loss=False), b"\n", b"{\n"
    )
    assert report.taken == 2
    assert [(group.kind.value, group.count) for group in report.dropped] == [
        ("empty line", 2),
        ("blank value", 1),
        ("not JSON", 1),
    ]
    assert [dropped.line for dropped in report.dropped[0].first] == [2, 5]
    assert (report.masked, report.masked_lines) == (1, (4,))
    assert report.tokens == 2 * AROUND + 5
    # The newline of the assistant's turn, its two letters and </s>.
    assert report.trained_tokens == 4
    assert next(report.problems()) == "data.jsonl:2: dropped: empty line"
    assert "data.jsonl:4: no token of this record is trained" in report.problems()
    assert json.loads(json.dumps(report.to_json()))["dropped"][0]["kind"] == "empty line"


def test_lengths_are_those_before_cutting():
    report = inspect(talk("a", "b" * 20), talk("a" * 30, "b"), talk("a", "b"), max_seq_length=20)
    assert report.lengths == LengthSummary(9, 28, 38, 38, 38)
    assert (report.truncated, report.masked) == (2, 1)
    assert report.masked_lines == (2,)
    assert report.to_json()["truncated_share"] == 0.6667


def test_a_long_list_of_problems_is_cut_short():
    report = inspect(*[b"{\n"] * 100, *[talk("a", "b", loss=False)] * 50)
    problems = list(report.problems())
    assert len(problems) == 12
    assert "data.jsonl: 95 more lines dropped: not JSON" in problems
    assert "45 more records" in problems[-1]


def test_lengths_are_summarised_by_nearest_rank():
    assert LengthSummary.of(range(1, 101)) == LengthSummary(1, 50, 90, 99, 100)
    assert LengthSummary.of([7]) == LengthSummary(7, 7, 7, 7, 7)
    assert LengthSummary.of([]) == LengthSummary()


def test_a_file_without_a_record_to_train_on_is_an_error_with_the_reasons():
    with pytest.raises(InvalidDatasetError, match="the file is empty"):
        inspect().require_records()
    with pytest.raises(InvalidDatasetError, match=r"data.jsonl:1: dropped: not JSON"):
        inspect(b"{\n").require_records()
    with pytest.raises(InvalidDatasetError, match=r"data.jsonl:1: no token"):
        inspect(talk("a", "b", loss=False)).require_records()
    inspect(talk("a", "b")).require_records()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    require_vocabulary(CharacterTokenizer(), 268)
    with pytest.raises(InvalidTokenizerError, match="268 ids and the model has room for 267"):
        require_vocabulary(CharacterTokenizer(), 267)


def test_a_length_that_the_runtime_cannot_take_is_refused_with_the_next_ones():
    require_multiple(192, 16)
    with pytest.raises(InvalidDatasetError, match=r"193 is not a multiple of 16.* use 192 or 208"):
        require_multiple(193, 16)
