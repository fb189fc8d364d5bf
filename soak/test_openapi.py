"""Requests made from the server's own description, and such as break it: no answer is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode, checks

from glm3sdk.server import Listener
from soak.fuzz_messages import application

LONG, SHORT = 1500, 60
PATHS = (
    "GET /v1/models",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /v1/chat/completions",
    "POST /v1/completions",
)
# Not that all is refused which the description does not allow: "0.5" is taken for 0.5, as other
# servers of this API take it.
CHECKS = [checks.not_a_server_error, checks.status_code_conformance]


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    with Listener(application(), port=0) as listener:
        schema = schemathesis.openapi.from_url(f"{listener.url}/openapi.json")
        yield {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_path_of_the_description_is_tried(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(PATHS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", PATHS)
def test_an_answer_is_one_that_the_description_has(
    label: str, mode: GenerationMode, operations: dict[str, Any], short: bool
) -> None:
    tried = 0
    posts = label.startswith("POST")
    if mode is GenerationMode.NEGATIVE and not posts:
        pytest.skip("it takes nothing that could be wrong")

    @seed(1)
    @settings(
        max_examples=(SHORT if short else LONG) if posts else 5,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        nonlocal tried
        tried += 1
        case.validate_response(case.call(), checks=CHECKS)

    check()
    print(f"  {tried} requests")
