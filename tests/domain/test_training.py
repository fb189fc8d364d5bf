from __future__ import annotations

import pytest

from glm3sdk.domain.training import CosineSchedule


def test_the_schedule_rises_to_the_peak_and_falls_to_the_end():
    schedule = CosineSchedule(peak=1.0, end=0.1, warmup_steps=4, total_steps=14)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4) == pytest.approx(1.0)
    # Half way through nine steps of cosine stands between steps 8 and 9.
    assert (schedule(8) + schedule(9)) / 2 == pytest.approx(0.55)
    assert schedule(13) == pytest.approx(0.1)
    assert schedule(99) == pytest.approx(0.1)
