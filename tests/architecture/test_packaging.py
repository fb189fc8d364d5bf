from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from glm3sdk import testing

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_core_does_not_cap_numpy():
    (numpy,) = [line for line in PROJECT["dependencies"] if line.startswith("numpy")]
    assert "<" not in numpy


def test_only_the_mindspore_extra_caps_numpy():
    capped = {name for name, lines in EXTRAS.items() if any("numpy" in line for line in lines)}
    assert capped == {"mindspore"}


@pytest.mark.parametrize("framework", ["mindspore", "torch"])
def test_the_core_depends_on_no_framework(framework: str):
    assert not [line for line in PROJECT["dependencies"] if line.startswith(framework)]


def test_the_extra_all_names_every_extra_but_dev():
    (line,) = EXTRAS["all"]
    named = line.removeprefix("glm3sdk[").removesuffix("]").split(",")
    assert sorted(named) == sorted(set(EXTRAS) - {"all", "dev"})


def test_the_fakes_run_without_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from glm3sdk.testing import CharacterTokenizer, ScriptedRuntime, write_random_checkpoint"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_testing_package_is_there():
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    assert testing.__all__ == dir(testing)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = testing.no_such_name


def test_the_package_says_that_it_is_typed():
    assert (REPOSITORY / "glm3sdk" / "py.typed").is_file()
