"""Chat for long: nothing fails, and memory, slots, threads and files stay what they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LONG, SHORT = 2000, 152
# Between the first tenth after the warm-up and the end: for allocators that settle, and Python's
# own caches. Over 2,000 turns it is 8 KiB a turn, less than a turn's text, ids and deltas take.
GROWTH_MIB = 16
# oneDNN keeps the kernels of 1,024 shapes, which take 300 MiB when prompts of many lengths were
# read, and no more after that. Without them what still grows is a leak.
NO_KEPT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}


def said_by(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(900)
def test_turns_that_are_broken_off_leave_nothing_behind(short: bool) -> None:
    turns = SHORT if short else LONG
    found = json.loads(said_by("-m", "soak.turns", str(turns), **NO_KEPT_KERNELS))
    ended, samples = found["ended"], found["samples"]
    print(f"  {turns} turns: {ended}")
    print("  memory, MiB:", *(f"{sample['rss_mib']:.1f}" for sample in samples))
    assert sum(ended.values()) == turns
    assert min(ended.get(how, 0) for how in ("whole", "streamed", "left", "cancelled")) > 5
    assert (found["busy"], found["waiting"]) == (0, 0)
    assert found["after"]["threads"] <= found["before"]["threads"]
    assert found["after"]["files"] <= found["before"]["files"]
    assert found["after"]["rss_mib"] - samples[0]["rss_mib"] < GROWTH_MIB


@pytest.mark.timeout(900)
def test_many_clients_at_once_are_served_without_an_error(short: bool) -> None:
    # The script ends with an error where a request failed, a slot or a place in the queue was
    # not given back, memory grew, or the clients together were not four times as fast as one.
    # Fifteen seconds on a machine with other work do not tell four from three: then twice will do.
    options = ["--short", "--wanted", "2"] if short else []
    print(said_by("benchmarks/serve_load.py", *options))
