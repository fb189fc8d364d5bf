"""The contract of metric sinks: tests that every adapter and every fake passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest

from glm3sdk.errors import ServiceClosedError
from glm3sdk.ports.metric_sink import MetricSink


class MetricSinkContract:
    """Derive a test class from it and give it the fixtures `sink` and `recorded`."""

    @pytest.fixture
    def sink(self) -> MetricSink:
        """An open sink that has recorded nothing."""
        raise NotImplementedError("override the `sink` fixture")

    @pytest.fixture
    def recorded(self) -> Callable[[], Mapping[int, Mapping[str, float]]]:
        """Reads what the sink's place holds now: figures by step, by name."""
        raise NotImplementedError("override the `recorded` fixture")

    def test_figures_are_there_at_once(
        self, sink: MetricSink, recorded: Callable[[], Mapping[int, Mapping[str, float]]]
    ) -> None:
        assert recorded() == {}
        sink.record(1, {"loss": 2.5, "learning_rate": 1e-4})
        sink.record(2, {"loss": -0.0625, "learning_rate": 0.0})
        # Before close: a killed run keeps its figures. Sinks may hold float32.
        found = recorded()
        assert found.keys() == {1, 2}
        assert found[1] == pytest.approx({"loss": 2.5, "learning_rate": 1e-4}, rel=1e-6)
        assert found[2] == {"loss": -0.0625, "learning_rate": 0.0}
        sink.close()
        assert recorded() == found

    def test_a_new_figure_may_come_later(
        self, sink: MetricSink, recorded: Callable[[], Mapping[int, Mapping[str, float]]]
    ) -> None:
        sink.record(1, {"loss": 4.0})
        sink.record(2, {"eval_loss": 3.5})
        sink.record(3, {"loss": 3.0, "eval_loss": 3.25})
        sink.close()
        assert recorded() == {1: {"loss": 4.0}, 2: {"eval_loss": 3.5}} | {
            3: {"loss": 3.0, "eval_loss": 3.25}
        }

    def test_a_step_may_be_recorded_in_parts(
        self, sink: MetricSink, recorded: Callable[[], Mapping[int, Mapping[str, float]]]
    ) -> None:
        sink.record(2**40, {"loss": 4.0, "grad_norm": 1.0})
        sink.record(2**40, {"eval_loss": 3.5})
        sink.record(2**40, {})
        sink.close()
        assert recorded() == {2**40: {"loss": 4.0, "grad_norm": 1.0, "eval_loss": 3.5}}

    def test_values_that_are_not_finite_are_kept(
        self, sink: MetricSink, recorded: Callable[[], Mapping[int, Mapping[str, float]]]
    ) -> None:
        sink.record(1, {"loss": math.nan, "scale": math.inf, "huge": 1e300})
        sink.close()
        found = recorded()[1]
        assert math.isnan(found["loss"])
        assert found["scale"] == math.inf
        assert found["huge"] > 1e38

    def test_any_text_is_a_name(
        self, sink: MetricSink, recorded: Callable[[], Mapping[int, Mapping[str, float]]]
    ) -> None:
        values = {"eval/loss": 1.0, "a, b": 2.0, 'quoted "x"': 3.0, "损失": 4.0}
        sink.record(1, values)
        sink.close()
        assert recorded() == {1: values}

    def test_closing_twice_does_nothing_and_recording_then_is_refused(
        self, sink: MetricSink
    ) -> None:
        sink.record(1, {"loss": 1.0})
        sink.close()
        sink.close()
        with pytest.raises(ServiceClosedError, match="closed"):
            sink.record(2, {"loss": 1.0})
