"""An evaluation composed from its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import attrs
import numpy as np

from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.word_segmentation import jieba_words
from glm3sdk.bootstrap.prediction import ConfiguredModel, configured_model, read_config
from glm3sdk.bootstrap.serving import load_runtime
from glm3sdk.config.contradictions import FLASH_ATTENTION_MULTIPLE
from glm3sdk.config.schema import RunConfig
from glm3sdk.domain.constraints import CallRule
from glm3sdk.domain.dataset import Dropped
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.prompt import offered_tools
from glm3sdk.domain.replies import INTERPRETER
from glm3sdk.errors import (
    InvalidCheckpointError,
    InvalidDatasetError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
    UserError,
)
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.training import StepMetrics, TokenBatch, TrainingPlan
from glm3sdk.services.continuations import RecordReader
from glm3sdk.services.datasets import open_dataset
from glm3sdk.services.evaluation import EvaluationReport, measure_loss, require_call, score
from glm3sdk.services.prediction import GREEDY, Prediction, Record, predict
from glm3sdk.services.preflight import DatasetReport
from glm3sdk.services.quality import Agreement, compare, learned_logits
from glm3sdk.services.record_layout import training_layout


class Stage(StrEnum):
    """What an evaluation is at: letting the model write, measuring its loss, or comparing it."""

    PREDICT = "predict"
    LOSS = "loss"
    COMPARE = "compare"


@attrs.frozen
class EvaluationProgress:
    """How far a stage of an evaluation is: turns predicted, or sequences measured."""

    stage: Stage
    done: int
    total: int


class Evaluation:
    """A checked evaluation; `load_evaluation` makes one.

    Attributes:
        config: what it was composed from.
        data: what the data file holds, and what of it was dropped.
        turns: continuations to predict.
        left_out: further ones, whose prompt leaves no room for a reply.
    """

    def __init__(self, model: ConfiguredModel) -> None:
        self.config = config = model.config
        if config.eval_data is None:
            raise UserError("eval_data is missing: name the file to evaluate on")
        # Nothing may see another record as its context.
        settings = attrs.evolve(config.eval_data, pack=False)
        self._model = self._limited(model)
        self._lines = JsonLinesFile(Path(settings.path))
        flash = config.model.flash_attention and "ascend" in (config.runtime.name or "")
        self._dataset = open_dataset(
            self._lines,
            settings,
            model.tokenizer,
            padded_vocab_size=model.opened.config.padded_vocab_size,
            multiple_of=FLASH_ATTENTION_MULTIPLE if flash else 1,
            max_records=config.evaluation.max_records,
            keep_masked=True,
        )
        self._reader = RecordReader(training_layout(settings), model.tokenizer)
        self.turns, self.left_out = self._count()

    @property
    def data(self) -> DatasetReport:
        """What the data file holds."""
        return self._dataset.report

    def run(
        self,
        *,
        progress: Callable[[EvaluationProgress], None] = lambda _: None,
        on_prediction: Callable[[Prediction], None] = lambda _: None,
    ) -> EvaluationReport:
        """Load the model, let it write, score that, and measure its loss.

        The loss is that of the file's training sequences, each once and none packed; a runtime
        that does not train has none.

        Args:
            progress: called as each stage goes on.
            on_prediction: is given what the model wrote, in the file's order.

        Raises:
            BackendUnavailableError: the framework, the device or jieba is not there.
            NonFiniteLogitsError: the model wrote NaN.
            NonFiniteLossError: its loss is NaN or infinite.
        """
        segment_words = jieba_words()

        def told() -> Iterator[Prediction]:
            for prediction in predict(
                service,
                self._records(),
                config=self._config_for,
                batch_size=self._model.batch_size,
                progress=lambda done: progress(EvaluationProgress(Stage.PREDICT, done, self.turns)),
            ):
                on_prediction(prediction)
                yield prediction

        with closing(self._model.load()) as service:
            progress(EvaluationProgress(Stage.PREDICT, 0, self.turns))
            report = score(told(), segment_words=segment_words)
            loss = measure_loss(self._losses(service.runtime, progress))
        return attrs.evolve(report, left_out=self.left_out, loss=loss)

    def compare(
        self,
        against: str | os.PathLike[str],
        *,
        runtime: str | None = None,
        progress: Callable[[EvaluationProgress], None] = lambda _: None,
    ) -> Agreement:
        """Compare the model's logits with another's over the file's learned tokens.

        One model is in memory at a time; the other's logits wait in a temporary file, 4 bytes
        for each token of the vocabulary and each learned token.

        Args:
            against: the reference, as `load_service` takes it; both have one tokenizer.
            runtime: what runs the reference.
            progress: called as each model goes on, twice over the file's sequences.

        Raises:
            InvalidCheckpointError: their vocabularies differ.
            InvalidDatasetError: nothing in the file is learned.
        """
        total, done = 2 * len(self._dataset), 0

        def batches() -> Iterator[TokenBatch]:
            nonlocal done
            for batch in self._dataset.in_order(1):
                yield batch
                done += 1
                progress(EvaluationProgress(Stage.COMPARE, done, total))

        with TemporaryFile() as kept:
            with closing(load_runtime(against, runtime=runtime)) as reference:
                vocab_size = reference.config.padded_vocab_size
                if vocab_size != self._model.opened.config.padded_vocab_size:
                    raise InvalidCheckpointError(
                        f"{os.fspath(against)} has a vocabulary of {vocab_size} and the model "
                        f"one of {self._model.opened.config.padded_vocab_size}; compare models "
                        "of one tokenizer"
                    )
                for logits, _ in learned_logits(reference, batches()):
                    kept.write(logits.data)
            kept.seek(0)
            with closing(self._model.load()) as service:
                return compare(
                    (logits, _next_logits(kept, logits), targets)
                    for logits, targets in learned_logits(service.runtime, batches())
                )

    def _losses(
        self, runtime: ModelRuntime, progress: Callable[[EvaluationProgress], None]
    ) -> Iterator[StepMetrics]:
        if not runtime.capabilities.training:
            return
        batch_size, total = self.config.training.batch_size, len(self._dataset)
        progress(EvaluationProgress(Stage.LOSS, 0, total))
        plan = TrainingPlan(flash_attention=self.config.model.flash_attention)
        with closing(runtime.start_training(plan=plan)) as session:
            for number, batch in enumerate(self._dataset.in_order(batch_size), start=1):
                yield session.eval_loss(batch)
                done = min(number * batch_size, total)
                progress(EvaluationProgress(Stage.LOSS, done, total))

    def _limited(self, model: ConfiguredModel) -> ConfiguredModel:
        """A model that repeats itself must end where the configuration sets it no limit."""
        limit = model.generation.max_new_tokens or GREEDY.max_new_tokens
        return attrs.evolve(model, generation=attrs.evolve(model.generation, max_new_tokens=limit))

    def _count(self) -> tuple[int, int]:
        """How many turns are predicted and left out; raises for what cannot be scored."""
        turns = left_out = 0
        for number, records in self._fitting():
            for record in records:
                if record is None:
                    left_out += 1
                    continue
                turns += 1
                expected = record[1]
                if not isinstance(expected, str) and expected.metadata:
                    require_call(expected, where=f"{self._lines.name}:{number}")
        if not turns:
            limit = min(self._model.max_seq_length, self._model.generation.max_length)
            raise InvalidDatasetError(
                f"{self._lines.name} has no turn to predict"
                + (
                    f": {left_out} leave no room for a reply within {limit} tokens; take shorter "
                    "records, or raise generation.max_length and generation.max_seq_length"
                    if left_out
                    else "; it needs an assistant turn that is trained"
                )
            )
        return turns, left_out

    def _records(self) -> Iterator[Record]:
        for _, records in self._fitting():
            yield from filter(None, records)

    def _fitting(self) -> Iterator[tuple[int, list[Record | None]]]:
        """Each record's line number and turns; None for a turn that leaves no room."""
        taken, most = 0, self.config.evaluation.max_records
        for line in self._lines.lines():
            if taken == most:
                return
            records = self._reader.records(line)
            if isinstance(records, Dropped):
                continue
            try:
                fitting = [record if self._fits(record) else None for record in records]
            except (InvalidMessageError, InvalidToolError):
                continue  # the dataset dropped it too, and says so
            taken += 1
            yield line.number, fitting

    def _fits(self, record: Record) -> bool:
        try:
            self._model.check(record[0], self._config_for(record))
        except PromptTooLongError:
            return False
        return True

    def _config_for(self, record: Record) -> GenerationConfig:
        """The parameters of a reply: a call is required only where the data has one."""
        config, (prompt, expected) = self._model.generation, record
        if config.tool_choice is None or isinstance(prompt, str) or isinstance(expected, str):
            return config
        if config.tool_choice == CallRule.NEVER:
            return config
        if not offered_tools(prompt):
            return attrs.evolve(config, tool_choice=None)
        called = expected.metadata and expected.metadata != INTERPRETER
        return config if called else attrs.evolve(config, tool_choice=CallRule.MAY.value)


def _next_logits(file: BinaryIO, like: FloatArray) -> FloatArray:
    """As many logits as another array has, from where a file is read."""
    return np.frombuffer(file.read(like.nbytes), np.float32).reshape(like.shape)


def load_evaluation(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Compose an evaluation and check everything that can be known before it starts.

    It evaluates `model` on `eval_data`, writing as `generation` says; where that sets no
    `max_new_tokens`, a reply ends after 512.

    Args:
        config: a `RunConfig`, its values as a mapping, a YAML file, or a preset's name.
        overrides: for a file or preset, `key=value` texts such as "evaluation.max_records=10".

    Raises:
        InvalidRunConfigError: with every problem of the configuration.
        InvalidDatasetError: a data file that cannot be used, naming file and line.
        InvalidTokenizerError: the tokenizer does not fit the model.
        InvalidCheckpointError: the model cannot be opened.
        UserError: there is no `eval_data`.
    """
    return Evaluation(configured_model(read_config(config, overrides)))
