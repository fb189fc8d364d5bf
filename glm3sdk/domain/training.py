"""Learning-rate schedules."""

from __future__ import annotations

import math

import attrs


@attrs.frozen(kw_only=True)
class CosineSchedule:
    """Linear warmup to `peak`, then half a cosine down to `end` (Loshchilov and Hutter 2017).

    Attributes:
        peak: the highest learning rate.
        end: the last one.
        warmup_steps: steps of the linear rise.
        total_steps: steps in all.
    """

    peak: float
    end: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        span = max(self.total_steps - self.warmup_steps - 1, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
