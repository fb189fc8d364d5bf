"""ROUGE-1, ROUGE-2 and ROUGE-L of one text (Lin 2004), counted as the published figures are.

Those were all made with the package rouge-chinese over the words of jieba. It counts each
n-gram once however often it occurs, and splits a text into sentences before it counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import attrs

_SENTENCE_END = re.compile(r"([。！？?]|\.{6})([^”’])")


@attrs.frozen
class Rouge:
    """F1 of the words, the pairs of words and the longest common subsequence, 0 to 1."""

    rouge_1: float
    rouge_2: float
    rouge_l: float


def rouge(prediction: Sequence[str], reference: Sequence[str]) -> Rouge:
    """The ROUGE scores of a prediction. All are 0 where one of the two is blank.

    A text of one word has no pair of words: its ROUGE-2 is 0, whatever it is compared with.

    Args:
        prediction: the words of what the model wrote, spaces and line breaks included.
        reference: the words of what it should have written.
    """
    predicted, expected = _counted_words(prediction), _counted_words(reference)
    return Rouge(
        rouge_1=_overlap(set(predicted), set(expected)),
        rouge_2=_overlap(_pairs(predicted), _pairs(expected)),
        rouge_l=_f1(_common_length(predicted, expected), len(predicted), len(expected)),
    )


def _counted_words(words: Sequence[str]) -> list[str]:
    """The words without spaces, and an empty word where only space is between two breaks.

    The empty word is rouge-chinese's: a text of several lines has another score without it.
    """
    text = _SENTENCE_END.sub(r"\1\n\2", " ".join(words)).rstrip()
    sentences = [sentence for sentence in text.split("\n") if sentence]
    return [word for sentence in sentences for word in sentence.split() or [""]]


def _pairs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return set(pairwise(words))


def _overlap(
    predicted: set[str] | set[tuple[str, ...]], expected: set[str] | set[tuple[str, ...]]
) -> float:
    return _f1(len(predicted & expected), len(predicted), len(expected))


def _f1(common: int, predicted: int, expected: int) -> float:
    return 2 * common / (predicted + expected) if common else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        above_left = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = above_left + 1 if word == other else max(above, row[column - 1])
            above_left = above
    return row[-1]
