"""Parsers of what comes from elsewhere raise typed errors, whatever they are given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from soak.fuzz_targets import TARGETS

REPOSITORY = Path(__file__).resolve().parents[1]
LONG_S, SHORT_S = 45, 4
# Where a finding stays, to be looked at: `python -m soak.fuzz TARGET --again FILE`.
FINDINGS = REPOSITORY / ".pytest_cache" / "findings"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_only_typed_errors_come_out(target: str, short: bool) -> None:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    seconds = SHORT_S if short else LONG_S
    command = [sys.executable, "-m", "soak.fuzz", target, "--seconds", str(seconds)]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        done = subprocess.run(
            [*command, "--findings", str(FINDINGS)],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": scratch},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    assert done.returncode == 0, done.stderr[-6000:]
    (tried,) = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    # A parser that became a thousand times slower would pass with hardly a try.
    assert int(tried) > 20 * seconds
    print(f"  {tried} inputs in {seconds} s")
