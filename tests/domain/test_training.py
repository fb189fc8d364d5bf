from __future__ import annotations

import pytest

from glm3sdk.domain.training import LossScale, Schedule


def test_a_cosine_rises_to_the_peak_and_falls_to_the_end():
    schedule = Schedule(kind="cosine", peak=1.0, end=0.1, warmup_steps=4, total_steps=14)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4) == pytest.approx(1.0)
    # Half way through nine steps of cosine stands between steps 8 and 9.
    assert (schedule(8) + schedule(9)) / 2 == pytest.approx(0.55)
    assert schedule(13) == pytest.approx(0.1)
    assert schedule(99) == pytest.approx(0.1)


def test_a_polynomial_of_power_one_is_a_straight_line():
    schedule = Schedule(peak=1.0, end=0.0, total_steps=5)
    assert [schedule(step) for step in range(5)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    squared = Schedule(peak=1.0, end=0.0, total_steps=5, power=2.0)
    assert squared(2) == pytest.approx(0.25)


def test_a_constant_stays_at_the_peak_after_warmup():
    schedule = Schedule(kind="constant", peak=2.0, warmup_steps=2, total_steps=9)
    assert [schedule(step) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]


def test_one_step_is_taken_at_the_peak():
    assert Schedule(peak=1.0, end=0.5, total_steps=1)(0) == 1.0


def test_the_loss_scale_halves_after_an_overflow_and_doubles_after_a_window():
    scale = LossScale(scale=8.0, window=2)
    scale = scale.after(finite=False)
    assert (scale.scale, scale.good_steps) == (4.0, 0)
    scale = scale.after(finite=True)
    assert (scale.scale, scale.good_steps) == (4.0, 1)
    scale = scale.after(finite=True)
    assert (scale.scale, scale.good_steps) == (8.0, 0)
