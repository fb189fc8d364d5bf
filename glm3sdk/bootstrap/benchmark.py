"""A model measured on this machine."""

from __future__ import annotations

import os
import time
from contextlib import closing

from glm3sdk.adapters.machine import memory_bytes_per_s, memory_use
from glm3sdk.bootstrap.serving import load_runtime
from glm3sdk.services.benchmark import BenchmarkPlan, BenchmarkReport, benchmark


def run_benchmark(
    model: str | os.PathLike[str],
    plan: BenchmarkPlan,
    *,
    runtime: str | None = None,
    dtype: str | None = None,
) -> tuple[BenchmarkReport, float]:
    """Load a model and measure it.

    Args:
        model: what `load_service` takes.
        plan: what to measure.
        runtime: as `load_service` takes it.
        dtype: as `load_service` takes it.

    Returns:
        The figures, and the seconds that loading took.

    Raises:
        UnsupportedOptionError: the model takes fewer tokens than the plan asks for.
        Glm3Error: what `load_service` raises.
    """
    began = time.perf_counter()
    with closing(load_runtime(model, runtime=runtime, dtype=dtype)) as loaded:
        load_s = time.perf_counter() - began
        report = benchmark(
            loaded,
            plan,
            clock=time.perf_counter,
            memory_bytes_per_s=memory_bytes_per_s,
            memory_use=memory_use,
        )
    return report, load_s
