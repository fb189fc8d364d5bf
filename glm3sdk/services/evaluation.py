"""Scores of a model over a data file: text, tool calls and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from glm3sdk.domain.chat import Message, ToolCall
from glm3sdk.domain.metrics import (
    Flavour,
    LossSummary,
    TextScores,
    WordSegmenter,
    mean_loss,
    mean_scores,
    read_call,
    same_json,
    score_text,
)
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError
from glm3sdk.ports.training import StepMetrics
from glm3sdk.services.prediction import Prediction


@attrs.frozen(kw_only=True)
class TextReport:
    """Scores of the turns where text is expected.

    Attributes:
        turns: how many there are.
        blank: in how many of them the model wrote no text.
        mindformers: means in MindFormers' flavour; None where every prediction is blank.
        official: means in the official flavour.
    """

    turns: int
    blank: int
    mindformers: TextScores | None
    official: TextScores | None

    def to_json(self) -> dict[str, Any]:
        """Counts, and the scores of each flavour."""
        return {
            "turns": self.turns,
            "blank": self.blank,
            "mindformers": self.mindformers and self.mindformers.to_json(),
            "official": self.official and self.official.to_json(),
        }


@attrs.frozen(kw_only=True)
class ToolReport:
    """Scores of the turns where a tool call is expected. The first call of a reply counts.

    Attributes:
        turns: how many there are.
        called: in how many of them the model made a call that can be read.
        malformed: in how many further ones it made one that cannot be read.
        right_name: in how many of them it called the tool expected.
        right_call: in how many of them the arguments are equal too.
    """

    turns: int
    called: int
    right_name: int
    right_call: int
    malformed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Counts of turns and the exact-match rates, each of all turns."""
        return {
            "turns": self.turns,
            "called": self.called,
            "malformed": self.malformed,
            "name_exact_match": self.right_name / self.turns,
            "arguments_exact_match": self.right_call / self.turns,
        }


@attrs.frozen(kw_only=True)
class EvaluationReport:
    """What was measured; a part is None where the data or the runtime has none of it.

    Attributes:
        turns: how many continuations were predicted.
        left_out: how many more there are, whose prompt leaves no room for a reply.
        text: scores of generated text.
        tools: scores of tool calls.
        loss: mean loss of the expected tokens.
    """

    turns: int
    text: TextReport | None
    tools: ToolReport | None
    left_out: int = 0
    loss: LossSummary | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; an infinite perplexity is null."""
        perplexity = self.loss.perplexity if self.loss else None
        return {
            "turns": self.turns,
            "left_out": self.left_out,
            "text": self.text and self.text.to_json(),
            "tools": self.tools and self.tools.to_json(),
            "loss": self.loss and self.loss.loss,
            "perplexity": None if perplexity == math.inf else perplexity,
            "loss_tokens": self.loss.tokens if self.loss else 0,
        }


def score(predictions: Iterable[Prediction], *, segment_words: WordSegmenter) -> EvaluationReport:
    """Score predictions, one at a time.

    Args:
        predictions: what a model wrote, best made as they are asked for.
        segment_words: cuts a text into words.

    Raises:
        InvalidDatasetError: there are no predictions, or an expected tool call cannot be read.
    """
    texts, tools = _TextTally(segment_words), _ToolTally()
    turns = 0
    for turns, prediction in enumerate(predictions, start=1):
        if prediction.expected.metadata:
            tools.add(prediction, require_call(prediction.expected, where=f"turn {turns}"))
        else:
            texts.add(prediction)
    if not turns:
        raise InvalidDatasetError("there is nothing to evaluate; pass at least one record")
    return EvaluationReport(turns=turns, text=texts.report(), tools=tools.report())


def require_call(expected: Message, *, where: str) -> ToolCall:
    """The tool call that a turn of a data file makes.

    Args:
        expected: an assistant turn with the name of a tool.
        where: what an error calls it.

    Raises:
        InvalidDatasetError: it cannot be read, so nothing can be compared with it.
    """
    call = read_call(expected)
    if call is None:
        raise InvalidDatasetError(
            f"{where}: expects a call of {expected.metadata!r} that cannot be read: "
            f"{expected.content!r:.80}; mend it in the data file"
        )
    return call


def measure_loss(batches: Iterable[StepMetrics]) -> LossSummary | None:
    """The mean loss over all tokens of `TrainingSession.eval_loss`'s batches.

    Raises:
        NonFiniteLossError: a batch's loss is NaN or infinite; the message says which.
    """
    return mean_loss(_finite(batches))


class _TextTally:
    def __init__(self, segment_words: WordSegmenter) -> None:
        self._segment_words = segment_words
        self._turns = self._blank = 0
        self._scores: dict[Flavour, list[TextScores]] = {flavour: [] for flavour in Flavour}

    def add(self, prediction: Prediction) -> None:
        text, expected = prediction.text, prediction.expected.content
        self._turns += 1
        self._blank += not text.strip()
        for flavour, kept in self._scores.items():
            scores = score_text(text, expected, flavour=flavour, segment_words=self._segment_words)
            if scores is not None:
                kept.append(scores)

    def report(self) -> TextReport | None:
        if not self._turns:
            return None
        return TextReport(
            turns=self._turns,
            blank=self._blank,
            mindformers=mean_scores(self._scores[Flavour.MINDFORMERS]),
            official=mean_scores(self._scores[Flavour.OFFICIAL]),
        )


class _ToolTally:
    def __init__(self) -> None:
        self._turns = self._called = self._right_name = self._right_call = self._malformed = 0

    def add(self, prediction: Prediction, expected: ToolCall) -> None:
        self._turns += 1
        call = next(filter(None, map(read_call, prediction.written)), None)
        if call is None:
            self._malformed += any(turn.metadata for turn in prediction.written)
            return
        self._called += 1
        right_name = call.name == expected.name
        self._right_name += right_name
        self._right_call += right_name and same_json(call.arguments, expected.arguments)

    def report(self) -> ToolReport | None:
        if not self._turns:
            return None
        return ToolReport(
            turns=self._turns,
            called=self._called,
            right_name=self._right_name,
            right_call=self._right_call,
            malformed=self._malformed,
        )


def _finite(losses: Iterable[StepMetrics]) -> Iterator[tuple[float, int]]:
    for number, metrics in enumerate(losses, start=1):
        if metrics.tokens and not math.isfinite(metrics.loss):
            raise NonFiniteLossError(
                f"the evaluation loss of batch {number} is {metrics.loss}; "
                "check the checkpoint and its dtype"
            )
        yield metrics.loss, metrics.tokens
