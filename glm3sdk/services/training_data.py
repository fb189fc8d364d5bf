"""A dataset in a run's order: the micro-batches of each step."""

from __future__ import annotations

import attrs

from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import Dataset


@attrs.frozen(eq=False)
class OrderedBatches:
    """The `TrainingData` of a dataset: the same batches for the same step, always."""

    dataset: Dataset
    order: DataOrder

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        return self.order.steps(1)

    def micro_batches(self, step: int) -> tuple[TokenBatch, ...]:
        """The micro-batches of a step, counted from 0 over all epochs."""
        return tuple(self.dataset.batch(indices) for indices in self.order.micro_batches(step))
