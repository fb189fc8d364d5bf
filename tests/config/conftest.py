from __future__ import annotations

from collections.abc import Callable

import pytest

from glm3sdk.config.loader import parse_config
from glm3sdk.errors import InvalidRunConfigError


@pytest.fixture
def complaints() -> Callable[..., list[str]]:
    """The lines of the error that a call ends in; by default of parsing `run.yaml`."""

    def collect(text: str, call: Callable[[str], object] | None = None) -> list[str]:
        with pytest.raises(InvalidRunConfigError) as caught:
            call(text) if call else parse_config(text, source="run.yaml")
        return str(caught.value).splitlines()

    return collect
