"""A training session without a framework: a table that learns which token follows which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.errors import (
    InvalidCheckpointError,
    InvalidDatasetError,
    NonFiniteLossError,
    ServiceClosedError,
)
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.training import AdamW, StatePart, StepMetrics, TokenBatch

_Table = npt.NDArray[np.float32]

_WEIGHT = "bigrams.weight"


class ScriptedTraining:
    """A `TrainingSession` of a bigram table: real losses, gradients and AdamW, in numpy.

    Its loss falls as a model's does, and depends on data order, learning rate, dropout seed
    and optimizer state as a model's does, so that a run that resumes wrongly shows it.

    Args:
        vocab_size: V; the table is `[V, V]`.
        optimizer: AdamW's constants.
        dropout: share of the logits that training drops.
        overflows_above: a larger loss scale overflows, as it would in float16.
        seed: of the first weights.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        optimizer: AdamW | None = None,
        dropout: float = 0.0,
        overflows_above: float = math.inf,
        seed: int = 0,
    ) -> None:
        self._optimizer = optimizer or AdamW()
        self._dropout = dropout
        self._overflows_above = overflows_above
        self._closed = False
        shape = (vocab_size, vocab_size)
        start = 0.1 * np.random.default_rng(seed).standard_normal(shape)
        self._weights: dict[str, _Table] = {_WEIGHT: start.astype(np.float32)}
        self._moments: dict[str, _Table] = {
            f"first_moment.{_WEIGHT}": np.zeros(shape, np.float32),
            f"second_moment.{_WEIGHT}": np.zeros(shape, np.float32),
            "beta1_power": np.ones((), np.float32),
            "beta2_power": np.ones((), np.float32),
        }

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        *,
        learning_rate: float,
        loss_scale: float = 1.0,
        dropout_seed: int = 0,
    ) -> StepMetrics:
        """Take one optimizer step; see the port.

        Raises:
            InvalidDatasetError: no label of the step counts.
            NonFiniteLossError: the loss or the gradient is not finite; nothing was updated.
        """
        self._require_open()
        tokens = sum(int(np.count_nonzero(b.labels != IGNORED_LABEL)) for b in micro_batches)
        if not tokens:
            raise InvalidDatasetError("every label of this step is masked: nothing to learn")
        drop = np.random.default_rng(dropout_seed) if self._dropout else None
        loss, gradient = 0.0, np.zeros_like(self._weights[_WEIGHT])
        for batch in micro_batches:
            loss += self._add_gradient(batch, gradient, drop) / tokens
        gradient /= np.float32(tokens)
        norm = float(np.linalg.norm(gradient))
        if loss_scale > self._overflows_above:
            norm = math.inf
        if not math.isfinite(loss + norm):
            raise NonFiniteLossError(f"the loss ({loss}) or its gradient (norm {norm}) overflowed")
        self._update(gradient, norm, learning_rate)
        return StepMetrics(loss=loss, tokens=tokens, grad_norm=norm)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch; see the port."""
        self._require_open()
        tokens = int(np.count_nonzero(batch.labels != IGNORED_LABEL))
        return StepMetrics(
            loss=self._add_gradient(batch, None, None) / max(tokens, 1), tokens=tokens
        )

    def specs(self, part: StatePart) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes of what `state` yields."""
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self._held(part).items()}

    def state(self, part: StatePart) -> Iterator[tuple[str, HostArray]]:
        """A part of the state, one tensor at a time."""
        for name in self._held(part):
            yield name, self._held(part)[name].copy()

    def restore(self, checkpoint: CheckpointReader) -> None:
        """Take both parts from a checkpoint; see the port.

        Raises:
            InvalidCheckpointError: a tensor is missing or has another shape.
        """
        parts = [self._held(part) for part in StatePart]
        for held in parts:
            for name, array in held.items():
                spec = checkpoint.tensors.get(name)
                if spec is None or spec.shape != array.shape:
                    raise InvalidCheckpointError(
                        f"the checkpoint does not fit: {name} must have shape {list(array.shape)}"
                    )
        for held in parts:
            held.update({name: checkpoint.read(name).astype(np.float32) for name in held})

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _held(self, part: StatePart) -> dict[str, _Table]:
        self._require_open()
        return self._weights if part is StatePart.WEIGHTS else self._moments

    def _add_gradient(
        self, batch: TokenBatch, gradient: _Table | None, drop: np.random.Generator | None
    ) -> float:
        """The sum of the losses of a batch; its gradient is added to `gradient`."""
        counted = batch.labels != IGNORED_LABEL
        rows, labels = batch.input_ids[counted], batch.labels[counted]
        logits = self._weights[_WEIGHT][rows]
        kept = np.float32(1.0)
        if drop is not None:
            mask = drop.random(logits.shape) >= self._dropout
            kept = mask.astype(np.float32) / np.float32(1.0 - self._dropout)
        logits = logits * kept
        shifted = logits - logits.max(axis=-1, keepdims=True, initial=-math.inf)
        logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        chosen = np.arange(len(labels)), labels
        if gradient is not None:
            slopes = np.exp(logs)
            slopes[chosen] -= 1
            np.add.at(gradient, rows, slopes * kept)
        return float(-logs[chosen].astype(np.float64).sum())

    def _update(self, gradient: _Table, norm: float, learning_rate: float) -> None:
        constants, held = self._optimizer, self._moments
        if constants.clip_norm is not None:
            gradient = gradient * np.float32(min(1.0, constants.clip_norm / (norm + 1e-6)))
        corrected: list[_Table] = []
        for number, beta, value in (
            ("first", constants.beta1, gradient),
            ("second", constants.beta2, gradient**2),
        ):
            name, power = f"{number}_moment.{_WEIGHT}", f"beta{len(corrected) + 1}_power"
            held[name] = np.float32(beta) * held[name] + np.float32(1 - beta) * value
            held[power] = np.asarray(held[power] * np.float32(beta))
            corrected.append(held[name] / (1 - held[power]))
        mean, square = corrected
        weight = self._weights[_WEIGHT] * np.float32(1 - learning_rate * constants.weight_decay)
        step = mean / (np.sqrt(square) + np.float32(constants.epsilon))
        self._weights[_WEIGHT] = weight - np.float32(learning_rate) * step

    def _require_open(self) -> None:
        if self._closed:
            raise ServiceClosedError("this training session was closed; start another one")
