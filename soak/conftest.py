from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Compiled graphs stay in the repository, with those of the tests; processes that are started
# find the tests' doubles.
os.environ.setdefault("GLM3SDK_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "glm3sdk"))
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
os.environ.setdefault("GLOG_v", "3")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="a few minutes instead of half an hour")


@pytest.fixture(scope="session")
def short(request: pytest.FixtureRequest) -> bool:
    """Whether there are minutes and not half an hour."""
    return bool(request.config.getoption("--short"))


@pytest.fixture(autouse=True)
def shown(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> object:
    """What a test measured is shown also where it passes."""
    yield
    told = capsys.readouterr().out
    if told.strip():
        with capsys.disabled():
            print(f"\n{request.node.name}\n{told.rstrip()}", flush=True)
