"""The port of training: one optimizer step at a time.

Schedules, data order, checkpoints and resume are decided by services.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs

from glm3sdk.ports.arrays import HostArray, IntArray


@attrs.frozen(eq=False)
class TokenBatch:
    """Sequences of one length, padded on the right.

    Attributes:
        input_ids: `[B, T]`.
        labels: `[B, T]`, already shifted; -100 where nothing is learned.
    """

    input_ids: IntArray
    labels: IntArray


@attrs.frozen(kw_only=True)
class AdamW:
    """AdamW's constants (Loshchilov and Hutter 2019), with bias correction.

    Attributes:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled decay of weight matrices; not of norms and biases.
        clip_norm: largest global norm of the gradient, or None.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0


@attrs.frozen
class StepMetrics:
    """What a step measured.

    Attributes:
        loss: mean negative log-likelihood over the counted labels, in nats.
        tokens: counted labels.
        grad_norm: global norm of the gradient before clipping; 0 in evaluation.
    """

    loss: float
    tokens: int
    grad_norm: float = 0.0


class TrainingSession(Protocol):
    """A model being trained."""

    def train_step(
        self, micro_batches: Sequence[TokenBatch], *, learning_rate: float
    ) -> StepMetrics:
        """Take one optimizer step over the mean loss of all micro-batches.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite; nothing was updated.
        """

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch, changing nothing."""

    def weights(self) -> Iterator[tuple[str, HostArray]]:
        """Every weight under its Hugging Face name, one in host memory at a time."""

    def close(self) -> None:
        """Free what training needs."""
