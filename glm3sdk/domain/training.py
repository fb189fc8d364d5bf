"""Learning-rate schedules and the dynamic loss scale."""

from __future__ import annotations

import math

import attrs


@attrs.frozen(kw_only=True)
class Schedule:
    """Linear warmup from 0 to `peak`, then a constant, half a cosine, or a polynomial.

    Attributes:
        kind: "constant", "cosine" (Loshchilov and Hutter 2017) or "polynomial".
        peak: the highest learning rate.
        end: the last one, for cosine and polynomial.
        warmup_steps: steps of the rise.
        total_steps: steps in all.
        power: of the polynomial; 1 is a straight line.
    """

    kind: str = "polynomial"
    peak: float
    end: float = 0.0
    warmup_steps: int = 0
    total_steps: int
    power: float = 1.0

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        span = max(self.total_steps - self.warmup_steps - 1, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        if self.kind == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
        else:
            share = (1.0 - progress) ** self.power
        return self.end + (self.peak - self.end) * share


@attrs.frozen(kw_only=True)
class LossScale:
    """The dynamic loss scale of float16 training (Micikevicius et al. 2018).

    Attributes:
        scale: what the loss is multiplied by.
        factor: divides the scale after an overflow, multiplies it after `window` good steps.
        window: good steps before the scale grows.
        good_steps: good steps since the scale last changed.
    """

    scale: float = 65536.0
    factor: float = 2.0
    window: int = 1000
    good_steps: int = 0

    def after(self, *, finite: bool) -> LossScale:
        """The scale after a step whose gradients were finite, or not."""
        if not finite:
            return attrs.evolve(self, scale=self.scale / self.factor, good_steps=0)
        if self.good_steps + 1 < self.window:
            return attrs.evolve(self, good_steps=self.good_steps + 1)
        return attrs.evolve(self, scale=self.scale * self.factor, good_steps=0)
