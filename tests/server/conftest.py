"""The chat page in a browser, which a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import MISSING, chromium, is_installed
from selenium import webdriver
from server.chat_page import PacedRuntime, Page, shown
from server.serving import TOKENIZER
from services.echo_runtime import EchoRuntime

from glm3sdk.services.chat import Glm3Service


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    if not is_installed():
        pytest.skip(MISSING)
    with chromium() as driver:
        yield driver


@pytest.fixture
def echo(browser: webdriver.Chrome) -> Iterator[Page]:
    """A page whose model answers with the question."""
    with shown(browser, Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER)) as page:
        yield page


@pytest.fixture
def paced(browser: webdriver.Chrome) -> Iterator[tuple[Page, PacedRuntime, Glm3Service]]:
    """The same with one slot, no queue, and a model that waits to be let."""
    runtime = PacedRuntime()
    runtime.hold()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    try:
        with shown(browser, service, max_queue=0) as page:
            yield page, runtime, service
            runtime.go_on()
    finally:
        runtime.go_on()
