"""The port of training: one optimizer step at a time.

Schedules, data order, loss scale, checkpoints and resume are decided by services, once for
every runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Protocol

import attrs

from glm3sdk.domain.lora import Lora
from glm3sdk.ports.arrays import HostArray, IntArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec


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


@attrs.frozen(kw_only=True)
class TrainingPlan:
    """What a training session trains, and how.

    Attributes:
        optimizer: AdamW's constants.
        lora: train an adapter and leave the weights; None trains every weight.
        recompute: recompute activations in the backward pass instead of keeping them.
        flash_attention: use the device's fused attention, where it has one.
        seed: of the adapter's first values.
    """

    optimizer: AdamW = AdamW()
    lora: Lora | None = None
    recompute: bool = False
    flash_attention: bool = True
    seed: int = 0


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


class StatePart(Enum):
    """What of a session's state is asked for.

    WEIGHTS: what is trained: every weight under its Hugging Face name, or the adapter's
        matrices under PEFT's.
    OPTIMIZER: AdamW's moments and the powers of its betas.
    """

    WEIGHTS = "weights"
    OPTIMIZER = "optimizer"


class TrainingSession(Protocol):
    """A model being trained. Contract: `glm3sdk.testing.TrainingContract`."""

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        *,
        learning_rate: float,
        loss_scale: float = 1.0,
        dropout_seed: int = 0,
    ) -> StepMetrics:
        """Take one optimizer step over the mean loss of all micro-batches.

        Args:
            micro_batches: batches of one shape; their counted labels weigh alike.
            learning_rate: of this step.
            loss_scale: the loss is multiplied by it and the gradients divided.
            dropout_seed: decides what this step drops; the same seed drops the same.

        Raises:
            InvalidDatasetError: no label of the step counts.
            NonFiniteLossError: the loss or the gradient is not finite; nothing was updated.
        """

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        """Loss of a batch, without dropout, changing nothing."""

    def specs(self, part: StatePart) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes of what `state` yields."""

    def state(self, part: StatePart) -> Iterator[tuple[str, HostArray]]:
        """A part of the state, one tensor in host memory at a time."""

    def restore(self, checkpoint: CheckpointReader) -> None:
        """Take both parts from a checkpoint that `state` filled.

        Raises:
            InvalidCheckpointError: a tensor is missing or has another shape.
        """

    def close(self) -> None:
        """Free what training needs."""
