from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

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


def test_the_package_says_that_it_is_typed():
    assert (REPOSITORY / "glm3sdk" / "py.typed").is_file()
