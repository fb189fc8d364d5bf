"""A table in the place of a model's weights, for runs of `load_finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.training import StepMetrics, TokenBatch, TrainingPlan
from glm3sdk.testing import ScriptedTraining

VOCAB = 64


def folded(batch: TokenBatch) -> TokenBatch:
    labels = np.where(batch.labels < 0, batch.labels, batch.labels % VOCAB)
    return TokenBatch(batch.input_ids % VOCAB, labels)


class SmallTable(ScriptedTraining):
    """Takes the ids of any model, modulo 64: small checkpoints are quick to write."""

    def train_step(self, micro_batches: Sequence[TokenBatch], **settings: Any) -> StepMetrics:
        return super().train_step([folded(batch) for batch in micro_batches], **settings)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        return super().eval_loss(folded(batch))


class TableRuntime:
    """Trains a table, whatever the model."""

    capabilities = RuntimeCapabilities(name="table", dtype="float32", training=True)

    def __init__(self) -> None:
        self.plans: list[TrainingPlan] = []

    def start_training(self, *, plan: TrainingPlan) -> ScriptedTraining:
        self.plans.append(plan)
        return SmallTable(VOCAB, optimizer=plan.optimizer, dropout=0.1)

    def close(self) -> None:
        pass
