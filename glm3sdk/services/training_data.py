"""What a run learns from: the micro-batches of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import Dataset


class TrainingData(Protocol):
    """The batches of a run, by step: a resumed run asks for the same ones."""

    def micro_batches(self, step: int) -> Sequence[TokenBatch]:
        """The micro-batches of a step, counted from 0 over all epochs."""

    def epoch(self, step: int) -> float:
        """Passes over the data done before a step."""


@attrs.frozen(eq=False)
class OrderedBatches:
    """The `TrainingData` of a dataset in a run's order."""

    dataset: Dataset
    order: DataOrder

    def micro_batches(self, step: int) -> tuple[TokenBatch, ...]:
        """The micro-batches of a step, counted from 0 over all epochs."""
        return tuple(self.dataset.batch(indices) for indices in self.order.micro_batches(step))

    def epoch(self, step: int) -> float:
        """Passes over the data done before a step."""
        return self.order.epoch(step)
