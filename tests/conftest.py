from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run: a failure here is a failure everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]

# Compiled graphs of the tests stay in the repository; a cache of the user's is not touched.
os.environ.setdefault("GLM3SDK_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "glm3sdk"))

# MindSpore reads it when it is imported, and a test may do that before the SDK, which sets it too.
# What a process without it prints: test_a_process_of_a_reader_s_own_warns_of_nothing.
os.environ.setdefault("GLOG_v", "3")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files (tokenizer, parity, replies) that are not part of the project."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("GLM3SDK_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GLM3SDK_TEST_DATA to the folder that holds it")
    return folder
