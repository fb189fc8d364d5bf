"""A finetune run: steps, evaluation, checkpoints and exact resume over the ports."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import InvalidCheckpointError, NonFiniteLossError
from glm3sdk.ports.checkpoint_store import CheckpointStore, StoredCheckpoint
from glm3sdk.ports.metric_sink import MetricSink
from glm3sdk.ports.training import StatePart, StepMetrics, TokenBatch, TrainingSession

_log = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"

# A loss scale below this finds no gradient that overflows only for being scaled.
_SMALLEST_SCALE = 1.0


class TrainingData(Protocol):
    """The batches of a run, by step: a resumed run asks for the same ones."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""

    def micro_batches(self, step: int) -> Sequence[TokenBatch]:
        """The micro-batches of a step, counted from 0 over all epochs."""


@attrs.frozen(kw_only=True)
class RunLimits:
    """How long a run is and how often it does what.

    Attributes:
        total_steps: optimizer steps.
        checkpoint_every: steps between checkpoints.
        keep: newest checkpoints that stay.
        evaluate_every: steps between evaluations; None evaluates at the end alone.
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
        step: steps taken so far, this one included.
        total_steps: steps of the run.
        metrics: what the step measured; None where it was skipped.
        learning_rate: of the step.
        tokens_per_s: tokens read per second in this step, padding included.
        remaining_s: estimated seconds to the end.
        loss_scale: the loss scale, where there is one.
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
        loss: of the last step.
        eval_loss: of the last evaluation.
        uri: the published result, or the last checkpoint where it did not finish.
    """

    step: int
    finished: bool
    loss: float | None
    eval_loss: float | None
    uri: str


def evaluation_loss(session: TrainingSession, batches: Iterable[TokenBatch]) -> StepMetrics:
    """Mean loss over every counted label of the batches; its exponential is the perplexity."""
    total, tokens = 0.0, 0
    for batch in batches:
        metrics = session.eval_loss(batch)
        total += metrics.loss * metrics.tokens
        tokens += metrics.tokens
    return StepMetrics(loss=total / max(tokens, 1), tokens=tokens)


class FinetuneRun:
    """One run in one directory. Killed at any moment, it resumes with the same losses.

    Args:
        session: the model being trained.
        data: what it learns.
        eval_batches: gives the evaluation data anew at each call, or None.
        schedule: the learning rate of each step.
        limits: how long the run is.
        loss_scale: the first dynamic loss scale, or None.
        store: where checkpoints go.
        uri: the run's directory: checkpoints go below it, the result into it.
        files: small files that make a checkpoint loadable (config.json, tokenizer.model).
        weights_file: name of the file of trained tensors.
        fingerprint: what a resumed run must share with the one before.
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
    ) -> None:
        self._session = session
        self._data = data
        self._schedule = schedule
        self._limits = limits
        self._store = store
        self._uri = uri
        self._eval_batches = eval_batches
        self._loss_scale = loss_scale
        self._sinks: Sequence[MetricSink] = ()
        self._files = dict(files or {})
        self._weights_file = weights_file
        self._fingerprint = dict(fingerprint or {})
        self._step = 0
        self._eval_loss: float | None = None

    def resume(self) -> int:
        """Continue from the newest checkpoint, if there is one.

        Returns:
            Steps already taken.

        Raises:
            InvalidCheckpointError: the checkpoint is damaged, or of another configuration.
        """
        checkpoint = newest_checkpoint(self._store, self._uri)
        if checkpoint is None:
            return 0
        checkpoint.verify()
        state = json.loads(checkpoint.read_file(STATE_FILE))
        self._check_fingerprint(state["fingerprint"])
        self._session.restore(checkpoint)
        self._step = state["step"]
        self._eval_loss = state["eval_loss"]
        if state["loss_scale"] is not None:
            self._loss_scale = LossScale(**state["loss_scale"])
        return self._step

    def run(
        self,
        *,
        sinks: Sequence[MetricSink] = (),
        on_event: Callable[[FinetuneEvent], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FinetuneResult:
        """Train to the last step, or until `should_stop`, which is asked after every step.

        Args:
            sinks: where figures go.
            on_event: is told of every step, evaluation and checkpoint.
            should_stop: True saves a checkpoint and ends the run.

        Raises:
            NonFiniteLossError: the message names the step.
        """
        self._sinks = sinks
        total, loss = self._limits.total_steps, None
        saved = self._step
        while self._step < total and not should_stop():
            event = self._train_step()
            if event.metrics is not None:
                loss = event.metrics.loss
            on_event(event)
            every = self._limits.evaluate_every
            if self._step == total or (every and self._step % every == 0):
                self._evaluate(on_event)
            if self._step % self._limits.checkpoint_every == 0 and self._step < total:
                self._save(on_event)
                saved = self._step
        stopped = self._step < total
        if stopped:
            if saved != self._step:
                self._save(on_event)
            uri = _checkpoint_uri(self._uri, self._step)
        else:
            uri = f"{self._uri}/result"
            self._publish(uri, resumable=False)
        return FinetuneResult(
            step=self._step, finished=not stopped, loss=loss, eval_loss=self._eval_loss, uri=uri
        )

    def _train_step(self) -> StepDone:
        step, started = self._step, time.perf_counter()
        batches = self._data.micro_batches(step)
        rate = self._schedule(step)
        scale = self._loss_scale
        metrics: StepMetrics | None = None
        try:
            metrics = self._session.train_step(
                batches,
                learning_rate=rate,
                loss_scale=scale.scale if scale else 1.0,
                dropout_seed=_dropout_seed(self._limits.seed, step),
            )
        except NonFiniteLossError as exc:
            if scale is None or scale.scale <= _SMALLEST_SCALE:
                raise NonFiniteLossError(
                    f"step {step + 1}, epoch {step // self._data.steps_per_epoch + 1}: {exc}"
                ) from exc
        if scale:
            self._loss_scale = scale.after(finite=metrics is not None)
        self._step += 1
        seconds = time.perf_counter() - started
        tokens = sum(batch.input_ids.size for batch in batches)
        event = StepDone(
            step=self._step,
            total_steps=self._limits.total_steps,
            metrics=metrics,
            learning_rate=rate,
            tokens_per_s=tokens / seconds,
            remaining_s=seconds * (self._limits.total_steps - self._step),
            loss_scale=scale.scale if scale else None,
        )
        if metrics is not None:
            self._record(
                {
                    "loss": metrics.loss,
                    "learning_rate": rate,
                    "grad_norm": metrics.grad_norm,
                    "tokens_per_s": event.tokens_per_s,
                }
            )
        return event

    def _evaluate(self, on_event: Callable[[FinetuneEvent], None]) -> None:
        if self._eval_batches is None:
            return
        self._eval_loss = evaluation_loss(self._session, self._eval_batches()).loss
        self._record({"eval_loss": self._eval_loss})
        on_event(Evaluated(self._step, self._eval_loss))

    def _save(self, on_event: Callable[[FinetuneEvent], None]) -> None:
        uri = _checkpoint_uri(self._uri, self._step)
        self._publish(uri, resumable=True)
        on_event(CheckpointSaved(self._step, uri))
        for old in self._store.list(f"{self._uri}/checkpoints")[: -self._limits.keep]:
            self._store.delete(old)

    def _publish(self, uri: str, *, resumable: bool) -> None:
        writer = self._store.create(uri)
        try:
            for name, data in self._files.items():
                writer.add_file(name, data)
            parts = [(self._weights_file, StatePart.WEIGHTS)]
            if resumable:
                parts.append((OPTIMIZER_FILE, StatePart.OPTIMIZER))
            for file, part in parts:
                writer.add_tensors(file, self._session.specs(part), self._session.state(part))
            writer.add_file(STATE_FILE, json.dumps(self._state(), indent=1).encode())
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "eval_loss": self._eval_loss,
            "loss_scale": attrs.asdict(self._loss_scale) if self._loss_scale else None,
            "fingerprint": self._fingerprint,
        }

    def _check_fingerprint(self, before: Mapping[str, Any]) -> None:
        changed = sorted(
            key
            for key in {*before, *self._fingerprint}
            if before.get(key) != self._fingerprint.get(key)
        )
        if changed:
            differences = ", ".join(
                f"{key} was {before.get(key)!r} and is {self._fingerprint.get(key)!r}"
                for key in changed
            )
            raise InvalidCheckpointError(
                f"{self._uri} holds a run of another configuration: {differences}; "
                "resume with the same one, or choose another output"
            )

    def _record(self, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.record(self._step, values)


def newest_checkpoint(store: CheckpointStore, uri: str) -> StoredCheckpoint | None:
    """The newest checkpoint below a run's directory, or None."""
    published = store.list(f"{uri}/checkpoints")
    return store.open(published[-1]) if published else None


def _checkpoint_uri(uri: str, step: int) -> str:
    return f"{uri}/checkpoints/step-{step:08d}"


def _dropout_seed(seed: int, step: int) -> int:
    """A seed of its own for every step, the same when the step is taken again."""
    return (seed * 1_000_003 + step * 7_919 + 1) & 0x7FFFFFFF
