from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.domain.bleu import bleu_4
from glm3sdk.domain.chat import Message
from glm3sdk.domain.metrics import (
    Flavour,
    LossSummary,
    TextScores,
    mean_loss,
    mean_scores,
    read_call,
    same_json,
    score_text,
)
from glm3sdk.domain.rouge import rouge

WORDS = st.lists(st.sampled_from(["a", "b", "c", "。", " ", "\n", "......."]), max_size=12)


def split(text: str) -> list[str]:
    return text.split(" ")


def test_bleu_can_be_worked_out_by_hand():
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, no quadruple of 2: half a match.
    expected = (4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25
    assert bleu_4(list("abcxd"), list("abcyd")) == pytest.approx(expected)


def test_a_short_prediction_pays_for_its_brevity():
    # Every n-gram matches; 5 words where 10 are expected.
    assert bleu_4(list("abcde"), list("abcdefghij")) == pytest.approx(math.exp(1 - 10 / 5))


def test_a_repeated_word_matches_only_as_often_as_the_reference_has_it():
    # 1 of 4 words; then half, a quarter and an eighth of a match.
    expected = (1 / 4 * 0.5 / 3 * 0.25 / 2 * 0.125 / 1) ** 0.25
    assert bleu_4(list("aaaa"), list("abcd")) == pytest.approx(expected)


def test_rouge_counts_a_repeated_word_once_but_its_length_in_full():
    scores = rouge(["a", "a", "b"], ["a", "b"])
    assert scores.rouge_1 == 1.0
    assert scores.rouge_2 == pytest.approx(2 * 1 / (2 + 1))  # aa, ab against ab
    assert scores.rouge_l == pytest.approx(2 * 2 / (3 + 2))


def test_rouge_does_not_count_spaces():
    assert rouge(["a", " ", "b"], ["a", "b"]) == rouge(["a", "b"], ["a", "b"])


@given(WORDS, WORDS)
def test_scores_lie_between_0_and_1(first, second):
    scores = (bleu_4(first, second), *attrs.astuple(rouge(first, second)))
    assert all(0.0 <= each <= 1.0 + 1e-12 for each in scores)


@given(WORDS, WORDS)
def test_rouge_is_the_same_both_ways(first, second):
    assert rouge(first, second) == rouge(second, first)


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=12))
def test_the_reference_itself_has_the_highest_scores(words):
    assert bleu_4(words, words) == pytest.approx(1.0)
    assert attrs.astuple(rouge(words, words)) == (1.0, 1.0, 1.0)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("xyz"), max_size=12))
def test_texts_without_a_common_word_score_nothing(first, second):
    assert bleu_4(first, second) == 0.0
    assert attrs.astuple(rouge(first, second)) == (0.0, 0.0, 0.0)


def test_mindformers_takes_bleu_over_characters_times_100():
    scores = score_text("ab cd", "ab ce", flavour=Flavour.MINDFORMERS, segment_words=split)
    assert scores is not None
    assert scores.bleu_4 == pytest.approx(100 * bleu_4("ab cd", "ab ce"))
    assert (scores.rouge_1, scores.rouge_2, scores.rouge_l) == (50.0, 0.0, 50.0)


def test_the_official_flavour_takes_bleu_over_words_from_0_to_1():
    scores = score_text(" ab cd\n", "ab ce", flavour=Flavour.OFFICIAL, segment_words=split)
    assert scores is not None
    assert scores.bleu_4 == pytest.approx(bleu_4(["ab", "cd"], ["ab", "ce"]))
    assert (scores.rouge_1, scores.rouge_2, scores.rouge_l) == (50.0, 0.0, 50.0)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_only_mindformers_leaves_a_blank_prediction_out(blank):
    assert score_text(blank, "a", flavour=Flavour.MINDFORMERS, segment_words=split) is None
    scores = score_text(blank, "a", flavour=Flavour.OFFICIAL, segment_words=split)
    assert scores == TextScores(0.0, 0.0, 0.0, 0.0)


def test_the_mean_counts_every_text_once():
    scores = [TextScores(1.0, 2.0, 3.0, 4.0), TextScores(3.0, 4.0, 5.0, 8.0)]
    assert mean_scores(scores) == TextScores(2.0, 3.0, 4.0, 6.0)
    assert mean_scores([]) is None


def test_perplexity_weighs_batches_by_their_tokens():
    summary = mean_loss([(1.0, 30), (math.nan, 0), (5.0, 10)])
    assert summary == LossSummary(2.0, 40)
    assert summary.perplexity == pytest.approx(math.e**2)


def test_there_is_no_loss_without_tokens():
    assert mean_loss([]) is None
    assert mean_loss([(0.0, 0)]) is None


def test_a_perplexity_beyond_a_float_is_infinite():
    assert LossSummary(1000.0, 1).perplexity == math.inf


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=2), JSON))
def test_the_order_of_keys_does_not_count(value):
    assert same_json(value, dict(reversed(value.items())))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (1, 1.0, True),
        ([1, {"a": None}], (1, {"a": None}), True),
        (1, True, False),
        (False, 0, False),
        ("1", 1, False),
        (None, False, False),
        ([], {}, False),
        ("ab", ["a", "b"], False),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": True}]}, False),
    ],
)
def test_arguments_are_compared_as_json_values(first, second, same):
    assert same_json(first, second) is same
    assert same_json(second, first) is same


def test_a_call_is_read_from_the_turn_that_makes_it():
    call = read_call(Message.assistant("```python\ntool_call(a=1)\n```", metadata="add"))
    assert call is not None
    assert (call.name, call.arguments) == ("add", {"a": 1})


def test_code_for_the_interpreter_is_a_call():
    call = read_call(Message.assistant("```python\nprint(1)\n```", metadata="interpreter"))
    assert call is not None
    assert call.name == "interpreter"


@pytest.mark.parametrize(
    "message",
    [Message.assistant("tool_call(a=1)"), Message.assistant("tool_call(a=f())", metadata="add")],
)
def test_text_and_unreadable_calls_are_no_calls(message):
    assert read_call(message) is None
