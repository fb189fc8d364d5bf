"""The port of metric sinks: where a run's figures go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Takes figures as a run makes them. Contract: `glm3sdk.testing.MetricSinkContract`."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the figures of a step, such as {"loss": 2.1, "learning_rate": 1e-4}."""

    def close(self) -> None:
        """Write what is left. Closing twice does nothing."""
