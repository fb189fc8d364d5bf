from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def python_blocks() -> list[tuple[str, str]]:
    found = []
    for name in ("README.md", "README.zh.md"):
        text = (REPOSITORY / name).read_text("utf-8")
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
            found.append((f"{name}-{number}", block))
    return found


@pytest.mark.parametrize(("name", "block"), python_blocks(), ids=lambda value: value[:14])
def test_the_readme_s_code_runs_and_warns_of_nothing(name: str, block: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), name


def test_the_readme_s_two_commands_are_targets_of_make():
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    assert re.search(r"^chat:", text, re.MULTILINE)
    assert re.search(r"^test:", text, re.MULTILINE)
