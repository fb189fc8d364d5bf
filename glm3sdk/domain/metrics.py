"""How well what the model wrote agrees with what a data file expects.

Generated text is scored in the two flavours in which figures for ChatGLM are published.
Both take ROUGE over words; they differ in the tokens and the scale of BLEU
(docs/adr/0008-evaluation-metrics.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import attrs

from glm3sdk.domain.bleu import bleu_4
from glm3sdk.domain.chat import Message, ToolCall
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.domain.rouge import rouge
from glm3sdk.domain.tool_calls import parse_tool_call

WordSegmenter: TypeAlias = Callable[[str], list[str]]
"""Cuts a text into words, which joined give the text again."""


class Flavour(StrEnum):
    """Whose way of scoring generated text.

    Attributes:
        MINDFORMERS: BLEU over characters, times 100; blank predictions are left out.
        OFFICIAL: of the ChatGLM3 repository: BLEU over words, 0 to 1, both texts stripped;
            it fails on a blank prediction, which scores 0 here.
    """

    MINDFORMERS = "mindformers"
    OFFICIAL = "official"


@attrs.frozen
class TextScores:
    """Agreement of generated text with the text expected.

    Attributes:
        rouge_1, rouge_2, rouge_l: F1 times 100.
        bleu_4: times 100 in the flavour of MindFormers, 0 to 1 in the official one.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    bleu_4: float

    def to_json(self) -> dict[str, float]:
        """The scores under the names that both publications use."""
        return {
            "rouge-1": self.rouge_1,
            "rouge-2": self.rouge_2,
            "rouge-l": self.rouge_l,
            "bleu-4": self.bleu_4,
        }


def score_text(
    prediction: str, reference: str, *, flavour: Flavour, segment_words: WordSegmenter
) -> TextScores | None:
    """Score one generated text; None where the flavour leaves it out.

    Args:
        prediction: what the model wrote.
        reference: what it should have written.
        flavour: whose way of scoring.
        segment_words: cuts a text into words; jieba's for figures that compare.
    """
    if flavour is Flavour.MINDFORMERS and not prediction.strip():
        return None
    if flavour is Flavour.OFFICIAL:
        prediction, reference = prediction.strip(), reference.strip()
    predicted, expected = segment_words(prediction), segment_words(reference)
    overlap = rouge(predicted, expected)
    bleu = (
        100 * bleu_4(prediction, reference)
        if flavour is Flavour.MINDFORMERS
        else bleu_4(predicted, expected)
    )
    return TextScores(100 * overlap.rouge_1, 100 * overlap.rouge_2, 100 * overlap.rouge_l, bleu)


def mean_scores(scores: Sequence[TextScores]) -> TextScores | None:
    """The mean of every score over texts, each text counting once; None without a text."""
    if not scores:
        return None
    columns = zip(*map(attrs.astuple, scores), strict=True)
    return TextScores(*(math.fsum(column) / len(scores) for column in columns))


@attrs.frozen
class LossSummary:
    """The mean loss of the expected tokens.

    Attributes:
        loss: nats a token.
        tokens: how many tokens it was taken over.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """`exp(loss)`: infinite where that is more than a float holds."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def mean_loss(batches: Iterable[tuple[float, int]]) -> LossSummary | None:
    """Join the mean losses of batches, each counting as often as it has tokens.

    A batch without tokens has no loss and is passed over, whatever number stands there.

    Args:
        batches: mean loss in nats and number of tokens of each batch.

    Returns:
        The loss over all tokens, or None where there is no token.
    """
    counted = [(loss, tokens) for loss, tokens in batches if tokens]
    total = sum(tokens for _, tokens in counted)
    if not total:
        return None
    return LossSummary(math.fsum(loss * tokens for loss, tokens in counted) / total, total)


def read_call(message: Message) -> ToolCall | None:
    """The tool call that an assistant message makes; None for text and unreadable calls.

    Code for the interpreter is a call with the message's content as its one argument.
    """
    if not message.metadata:
        return None
    if message.metadata == INTERPRETER:
        return ToolCall(INTERPRETER, {"code": message.content.strip()})
    call = parse_tool_call(message.metadata, message.content)
    return call if isinstance(call, ToolCall) else None


def same_json(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: keys in any order, 1 is 1.0, but 1 is not true."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(
            same_json(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same_json, first, second))
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
