"""The documentation's code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "docs" / "serving.md").read_text("utf-8"), re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS, ids=["client", "asyncio"])
def test_a_block_of_the_page_about_serving_runs(block: str):
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", block],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "你好" in done.stdout
