from __future__ import annotations

import attrs
import pytest

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import UnsupportedOptionError
from glm3sdk.services.benchmark import BenchmarkPlan, benchmark, token_bytes
from glm3sdk.testing.scripted_runtime import Decode, Prefill, ScriptedRuntime

PLAN = BenchmarkPlan(prompt=10, new_tokens=4, batch=3, repeats=3)


class Clock:
    """Each look at it is so many seconds later than the last one."""

    def __init__(self, *steps: float) -> None:
        self.now, self.steps, self.looks = 0.0, steps, 0

    def __call__(self) -> float:
        # Every second look ends a measurement.
        if self.looks % 2:
            self.now += self.steps[self.looks // 2 % len(self.steps)]
        self.looks += 1
        return self.now


def run(runtime: ScriptedRuntime, plan: BenchmarkPlan = PLAN, *steps: float):
    return benchmark(
        runtime,
        plan,
        clock=Clock(*steps),
        memory_bytes_per_s=iter([1e9, 9e9, 2e9]).__next__,
        memory_use=lambda: (500, 200),
    )


def test_the_figures_are_medians_of_interleaved_repeats():
    runtime = ScriptedRuntime("x")
    # A warm-up of everything, then rounds of prefill, decode, batch and verification.
    rounds = (0.5, 2.0, 6.0, 1.2), (5.0, 4.0, 3.0, 7.0), (1.0, 8.0, 12.0, 0.1)
    report = run(runtime, PLAN, 9.0, 9.0, 9.0, 9.0, *(step for each in rounds for step in each))
    assert report.first_token_s == pytest.approx(1.0)
    assert report.prefill_tokens_per_s == pytest.approx(10.0)
    assert report.decode_tokens_per_s == pytest.approx(1.0)
    assert report.batch_tokens_per_s == pytest.approx(2.0)
    assert report.verify_steps == pytest.approx(1.2)
    assert (report.peak_rss, report.anonymous) == (500, 200)
    assert report.memory_bytes_per_s == 2e9
    share = report.token_bytes * 1.0 / 2e9
    assert report.bandwidth_share == pytest.approx(share)
    assert report.to_json()["plan"] == attrs.asdict(PLAN)
    decodes = [call.slots for call in runtime.calls if isinstance(call, Decode)]
    assert decodes[-8:] == [(0,)] * 4 + [(0, 1, 2)] * 4
    prompts = [c.input_ids for c in runtime.calls if isinstance(c, Prefill)]
    assert [len(ids) for ids in prompts] == [10, 4] * 4
    assert prompts[1] == prompts[0][-4:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 0}, "prompt must be at least 1, not 0"),
        ({"repeats": -1}, "repeats must be at least 1"),
        ({"prompt": 10**6}, r"more than the \d+ that the model takes"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(change: dict[str, int], message: str):
    with pytest.raises(UnsupportedOptionError, match=message):
        run(ScriptedRuntime("x"), attrs.evolve(PLAN, **change), 1.0)


def test_a_token_reads_every_weight_but_the_embeddings():
    config = Glm3Config.preset("glm3-6b")
    # 6,243,584,000 weights less 65,024 rows of 4,096.
    assert token_bytes(config, "int8") == 5_977_245_696
    assert token_bytes(config, "float16") == 2 * 5_977_245_696
