"""Scores of a model over a data file: text, tool calls and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from glm3sdk.domain.chat import ToolCall
from glm3sdk.domain.generation import GenerationConfig
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
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.prediction import GREEDY, Prediction, Record, predict


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
        right_name: in how many of them it called the tool expected.
        right_call: in how many of them the arguments are equal too.
    """

    turns: int
    called: int
    right_name: int
    right_call: int

    def to_json(self) -> dict[str, Any]:
        """Counts of turns and the exact-match rates, each of all turns."""
        return {
            "turns": self.turns,
            "called": self.called,
            "name_exact_match": self.right_name / self.turns,
            "arguments_exact_match": self.right_call / self.turns,
        }


@attrs.frozen(kw_only=True)
class EvaluationReport:
    """What `evaluate` measured; a part is None where the data or the runtime has none of it.

    Attributes:
        records: how many records were predicted.
        text: scores of generated text.
        tools: scores of tool calls.
        loss: mean loss of the expected tokens.
    """

    records: int
    text: TextReport | None
    tools: ToolReport | None
    loss: LossSummary | None

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; an infinite perplexity is null."""
        perplexity = self.loss.perplexity if self.loss else None
        return {
            "records": self.records,
            "text": self.text and self.text.to_json(),
            "tools": self.tools and self.tools.to_json(),
            "loss": self.loss and self.loss.loss,
            "perplexity": None if perplexity == math.inf else perplexity,
            "loss_tokens": self.loss.tokens if self.loss else 0,
        }


def evaluate(
    service: Glm3Service,
    records: Iterable[Record],
    *,
    segment_words: WordSegmenter,
    config: GenerationConfig = GREEDY,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    losses: Iterable[StepMetrics] = (),
) -> EvaluationReport:
    """Let a model write every record's continuation and score what it wrote.

    Args:
        service: the loaded model.
        records: read a batch at a time; see `predict`.
        segment_words: cuts a text into words.
        config: generation parameters.
        batch_size: records given to the service at once.
        progress: called after each batch with the number of records done.
        losses: `TrainingSession.eval_loss` of every batch, best made as they are asked
            for; empty where the runtime does not train.

    Raises:
        InvalidDatasetError: there are no records, or an expected tool call cannot be read.
        PromptTooLongError: a prompt leaves no room for a reply.
        NonFiniteLossError: a batch's loss is NaN or infinite; the message says which.
    """
    predictions = predict(service, records, config=config, batch_size=batch_size, progress=progress)
    return score(predictions, segment_words=segment_words, losses=losses)


def score(
    predictions: Iterable[Prediction],
    *,
    segment_words: WordSegmenter,
    losses: Iterable[StepMetrics] = (),
) -> EvaluationReport:
    """Score predictions, one at a time; arguments and errors as for `evaluate`."""
    texts, tools = _TextTally(segment_words), _ToolTally()
    records = 0
    for records, prediction in enumerate(predictions, start=1):
        if not prediction.expected.metadata:
            texts.add(prediction)
            continue
        expected = read_call(prediction.expected)
        if expected is None:
            raise InvalidDatasetError(
                f"record {records} expects a call of {prediction.expected.metadata!r} that "
                f"cannot be read: {prediction.expected.content!r:.80}; mend it in the data file"
            )
        tools.add(prediction, expected)
    if not records:
        raise InvalidDatasetError("there are no records to evaluate; pass at least one")
    return EvaluationReport(
        records=records,
        text=texts.report(),
        tools=tools.report(),
        loss=mean_loss(_finite(losses)),
    )


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
        self._turns = self._called = self._right_name = self._right_call = 0

    def add(self, prediction: Prediction, expected: ToolCall) -> None:
        self._turns += 1
        call = next(filter(None, map(read_call, prediction.written)), None)
        if call is None:
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
        )


def _finite(losses: Iterable[StepMetrics]) -> Iterator[tuple[float, int]]:
    for number, metrics in enumerate(losses, start=1):
        if metrics.tokens and not math.isfinite(metrics.loss):
            raise NonFiniteLossError(
                f"the evaluation loss of batch {number} is {metrics.loss}; "
                "check the checkpoint and its dtype"
            )
        yield metrics.loss, metrics.tokens
