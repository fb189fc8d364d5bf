from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from reference.tensorboard_events import read_scalars

from glm3sdk.adapters.metrics.csv import CsvMetricSink
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.ports.metric_sink import MetricSink
from glm3sdk.testing.metric_contract import MetricSinkContract

Recorded = Callable[[], Mapping[int, Mapping[str, float]]]


class TestCsvMetricSink(MetricSinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> MetricSink:
        return CsvMetricSink(tmp_path / "run" / "metrics.csv")

    @pytest.fixture
    def recorded(self, tmp_path: Path) -> Recorded:
        def read() -> Mapping[int, Mapping[str, float]]:
            with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            steps = [int(row["step"]) for row in rows]
            assert len(set(steps)) == len(steps), "a step has one row"
            return {
                step: {name: float(text) for name, text in row.items() if text and name != "step"}
                for step, row in zip(steps, rows, strict=True)
            }

        return read


class TestTensorBoardMetricSink(MetricSinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> MetricSink:
        return TensorBoardMetricSink(tmp_path / "run" / "tensorboard")

    @pytest.fixture
    def recorded(self, tmp_path: Path) -> Recorded:
        return lambda: read_scalars(tmp_path / "run" / "tensorboard")
