from __future__ import annotations

from collections.abc import Iterator

import pytest

from glm3sdk import Glm3Service, load_service


@pytest.fixture(scope="session")
def tiny() -> Iterator[Glm3Service]:
    """The bundled model on MindSpore's CPU; its graphs are compiled once for all tests."""
    with load_service("tiny") as service:
        yield service
