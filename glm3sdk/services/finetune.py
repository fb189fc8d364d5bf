"""A finetune run: steps, evaluation, checkpoints and exact resume over the ports."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from glm3sdk.domain.metrics import mean_loss
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError
from glm3sdk.ports.checkpoint_store import CheckpointStore
from glm3sdk.ports.metric_sink import MetricSink
from glm3sdk.ports.training import StepMetrics, TokenBatch, TrainingSession
from glm3sdk.services.run_checkpoints import WEIGHTS_FILE, Progress, RunCheckpoints
from glm3sdk.services.run_ranks import ALONE, RunRanks
from glm3sdk.services.run_shards import StrategyFormat
from glm3sdk.services.training_data import TrainingData

# A loss scale below this finds no gradient that overflows only for being scaled.
_SMALLEST_SCALE = 1.0
# Steps whose pace tells how long the rest will take.
_PACE_STEPS = 20


@attrs.frozen(kw_only=True)
class RunLimits:
    """How long a run is and how often it does what.

    Attributes:
        total_steps: optimizer steps.
        checkpoint_every: steps between checkpoints; the last step publishes the result.
        keep: newest checkpoints that stay.
        evaluate_every: steps between evaluations; the last step is always followed by one.
        seed: of dropout.
    """

    total_steps: int
    checkpoint_every: int
    keep: int
    evaluate_every: int | None = None
    seed: int = 0


@attrs.frozen(kw_only=True)
class StepDone:
    """An event: a step was taken, or skipped after an overflow of the loss scale.

    Attributes:
        step: steps so far, this one included.
        total_steps: steps of the run.
        metrics: what the step measured; None where it was skipped.
        learning_rate: of the step.
        tokens_per_s: tokens read per second in this step, padding included.
        remaining_s: estimated seconds to the last step, at the pace of the latest steps;
            evaluations and checkpoints are left out.
        loss_scale: of the step, where there is one.
    """

    step: int
    total_steps: int
    metrics: StepMetrics | None
    learning_rate: float
    tokens_per_s: float
    remaining_s: float
    loss_scale: float | None


@attrs.frozen
class Evaluated:
    """An event: the evaluation data's mean loss after `step` steps, in nats a token."""

    step: int
    loss: float


@attrs.frozen
class CheckpointSaved:
    """An event: a checkpoint was published."""

    step: int
    uri: str


FinetuneEvent = StepDone | Evaluated | CheckpointSaved


@attrs.frozen(kw_only=True)
class FinetuneResult:
    """How a run ended.

    Attributes:
        step: steps taken.
        finished: False where it was asked to stop before the last step.
        loss: of the last step that was not skipped; None where this process took none.
        eval_loss: of the last evaluation.
        uri: the published result; the checkpoint to resume from where the run did not
            finish; the run's directory where it was stopped before its first step.
    """

    step: int
    finished: bool
    loss: float | None
    eval_loss: float | None
    uri: str


class FinetuneRun:
    """One run in one directory. Killed at any moment, it resumes with the same losses.

    Of several ranks each composes one, and calls it alike; sinks and sends are the first one's.

    Args:
        session: the model being trained.
        data: what it learns; of several ranks, this one's share.
        schedule: the learning rate of each step.
        limits: how long the run is.
        store: where checkpoints go.
        uri: the run's directory: checkpoints go below it, the result into it.
        eval_batches: gives the evaluation data anew at each call, or None; of several ranks
            each one's share, as many batches for each.
        loss_scale: the first dynamic loss scale, or None.
        files: small files that make a checkpoint loadable (config.json, tokenizer.model).
        weights_file: name of the file of trained tensors.
        fingerprint: what a resumed run must share with the one before, as JSON values.
        before_publish: is called before each checkpoint, and the result, is published: what a
            resumed run needs of the figures must be safe by then.
        ranks: this process and the others of the run.
        strategies: the format of what tells how ranks share tensors out.
        clock: seconds, from any moment on.
    """

    def __init__(
        self,
        *,
        session: TrainingSession,
        data: TrainingData,
        schedule: Schedule,
        limits: RunLimits,
        store: CheckpointStore,
        uri: str,
        eval_batches: Callable[[], Iterator[TokenBatch]] | None = None,
        loss_scale: LossScale | None = None,
        files: Mapping[str, bytes] | None = None,
        weights_file: str = WEIGHTS_FILE,
        fingerprint: Mapping[str, Any] | None = None,
        before_publish: Callable[[], None] = lambda: None,
        ranks: RunRanks = ALONE,
        strategies: StrategyFormat | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session = session
        self._data = data
        self._schedule = schedule
        self._limits = limits
        self._eval_batches = eval_batches
        self._checkpoints = RunCheckpoints(
            store=store,
            uri=uri,
            keep=limits.keep,
            files=files or {},
            weights_file=weights_file,
            fingerprint=fingerprint or {},
            before_publish=before_publish,
            ranks=ranks,
            strategies=strategies,
        )
        self._ranks = ranks
        self._clock = clock
        self._sinks: Sequence[MetricSink] = ()
        self._progress = Progress(loss_scale=loss_scale)
        self._loss: float | None = None
        self._seconds: deque[float] = deque(maxlen=_PACE_STEPS + 1)

    def resume(self) -> int:
        """Continue from the newest checkpoint, if there is one.

        Returns:
            Steps already taken.

        Raises:
            InvalidCheckpointError: the checkpoint is damaged (the message says what to do),
                or of another configuration.
        """
        found = self._checkpoints.newest()
        if found is not None:
            checkpoint, self._progress = found
            self._ranks.together(lambda: self._session.restore(checkpoint))
        return self._progress.step

    def run(
        self,
        *,
        sinks: Sequence[MetricSink] = (),
        on_event: Callable[[FinetuneEvent], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FinetuneResult:
        """Train to the last step, or until `should_stop`, which is asked between steps.

        Args:
            sinks: where figures go. A skipped step has no loss there.
            on_event: is told of every step, then of the evaluation and of the checkpoint
                that follow it.
            should_stop: True saves a checkpoint and ends the run; of several ranks, on any.

        Raises:
            NonFiniteLossError: the message names step and epoch.
            CheckpointWriteError: a checkpoint or the result could not be written.
            RuntimeFailureError: another rank could not go on.
        """
        self._sinks = sinks
        total, saved = self._limits.total_steps, self._progress.step
        uri = self._checkpoints.uri_of(saved) if saved else self._checkpoints.uri
        while (step := self._progress.step) < total:
            stop = self._ranks.any(should_stop())
            if step > saved and (stop or self._is_due(self._limits.checkpoint_every)):
                uri, saved = self._checkpoints.save(self._session, self._progress), step
                on_event(CheckpointSaved(step, uri))
            if stop:
                return self._ended(uri)
            on_event(self._train_step())
            # Before the checkpoint of this step, which holds what it found.
            if self._progress.step == total or self._is_due(self._limits.evaluate_every):
                self._evaluate(on_event)
        return self._ended(self._checkpoints.publish_result(self._session, self._progress))

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self._progress.step % every == 0

    def _ended(self, uri: str) -> FinetuneResult:
        progress = self._progress
        return FinetuneResult(
            step=progress.step,
            finished=progress.step == self._limits.total_steps,
            loss=self._loss,
            eval_loss=progress.eval_loss,
            uri=uri,
        )

    def _train_step(self) -> StepDone:
        step, started = self._progress.step, self._clock()
        batches = self._data.micro_batches(step)
        rate, scale = self._schedule(step), self._progress.loss_scale
        metrics = self._metrics(step, batches, rate, scale)
        self._progress = attrs.evolve(
            self._progress,
            step=step + 1,
            loss_scale=scale.after(finite=metrics is not None) if scale else None,
        )
        seconds = max(self._clock() - started, 1e-9)
        event = StepDone(
            step=step + 1,
            total_steps=self._limits.total_steps,
            metrics=metrics,
            learning_rate=rate,
            tokens_per_s=self._ranks.data * sum(b.input_ids.size for b in batches) / seconds,
            remaining_s=self._remaining(seconds),
            loss_scale=scale.scale if scale else None,
        )
        self._record_step(event)
        return event

    def _metrics(
        self, step: int, batches: Sequence[TokenBatch], rate: float, scale: LossScale | None
    ) -> StepMetrics | None:
        """What a step measured, or None where it was skipped."""
        try:
            metrics = self._session.train_step(
                batches,
                learning_rate=rate,
                loss_scale=scale.scale if scale else 1.0,
                dropout_seed=_dropout_seed(self._limits.seed, step),
            )
        except NonFiniteLossError as exc:
            if scale and scale.scale > _SMALLEST_SCALE:
                return None
            epoch = int(self._data.epoch(step)) + 1
            raise NonFiniteLossError(f"step {step + 1}, epoch {epoch}: {exc}") from exc
        self._loss = metrics.loss
        return metrics

    def _remaining(self, seconds: float) -> float:
        self._seconds.append(seconds)
        # The oldest is left out: this process's first step also compiled.
        recent = list(self._seconds)[1:] or [seconds]
        return sum(recent) / len(recent) * (self._limits.total_steps - self._progress.step)

    def _record_step(self, event: StepDone) -> None:
        values = {"learning_rate": event.learning_rate, "tokens_per_s": event.tokens_per_s}
        if event.metrics is not None:
            values = {"loss": event.metrics.loss, "grad_norm": event.metrics.grad_norm, **values}
        if event.loss_scale is not None:
            values["loss_scale"] = event.loss_scale
        self._record(values)

    def _evaluate(self, on_event: Callable[[FinetuneEvent], None]) -> None:
        if self._eval_batches is None:
            return
        loss = evaluation_loss(self._session, self._eval_batches())
        self._progress = attrs.evolve(self._progress, eval_loss=loss)
        self._record({"eval_loss": loss})
        on_event(Evaluated(self._progress.step, loss))

    def _record(self, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.record(self._progress.step, values)


def evaluation_loss(session: TrainingSession, batches: Iterable[TokenBatch]) -> float:
    """Mean loss over every counted label of the batches; its exponential is the perplexity.

    Raises:
        InvalidDatasetError: no label counts.
    """
    each = (session.eval_loss(batch) for batch in batches)
    summary = mean_loss((metrics.loss, metrics.tokens) for metrics in each)
    if summary is None:
        raise InvalidDatasetError("no label of the evaluation data counts: nothing to measure")
    return summary.loss


def _dropout_seed(seed: int, step: int) -> int:
    """A seed of its own for every step, the same when the step is taken again."""
    return (seed * 1_000_003 + step * 7_919 + 1) & 0x7FFFFFFF
