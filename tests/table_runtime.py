"""A table in the place of a model's weights, for runs of `load_finetune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
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


def table_run(folder: Path) -> dict[str, Any]:
    """Settings of a run over 6 records of `folder`, evaluated every third step."""
    data = folder / "records.jsonl"
    records = [{"content": f"第{i}个问题", "summary": "你好" * (i + 1)} for i in range(6)]
    data.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    read = {"path": str(data), "format": "adgen-chat", "max_seq_length": 32}
    return {
        "output": str(folder / "run"),
        "train_data": read,
        "eval_data": read,
        "evaluation": {"every": 3},
        "training": {"epochs": 2, "batch_size": 2},
        "schedule": {"learning_rate": 0.1},
        "checkpoints": {"every": 2, "keep": 2},
    }
