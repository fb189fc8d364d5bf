"""The chat page as a person meets it: fields, keys, and what is to be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from server.serving import served
from services.echo_runtime import EchoRuntime

from glm3sdk.services.chat import Glm3Service

TIMEOUT_S = 20


class PacedRuntime(EchoRuntime):
    """Answers with the question, as many tokens at a time as it is let."""

    def let(self, tokens: int) -> None:
        self._permits.release(tokens)


@attrs.define
class Page:
    """One page of one server, in a browser.

    Attributes:
        browser: its tab shows the page.
        url: the server's address.
        failures: parts of the console's messages that the test asks for, such as "401".
    """

    browser: webdriver.Chrome
    url: str
    failures: list[str] = attrs.field(factory=list)

    def open(self) -> Page:
        self.browser.get(self.url)
        self.until(lambda: self.read("#model"))
        return self

    def until(self, happened: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, TIMEOUT_S, 0.02).until(lambda _: happened())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def protocol(self, command: str, **parameters: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, parameters)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click it, once it has come to where it will be."""
        passing = [StaleElementReferenceException, ElementNotInteractableException]
        WebDriverWait(self.browser, TIMEOUT_S, 0.02, passing).until(
            lambda _: self.find(selector).click() is None
        )

    def read_all(self, selector: str) -> list[str]:
        """The texts of what is shown, as they are; read at once, so that nothing is stale."""
        return self.run(
            "return Array.from(document.querySelectorAll(arguments[0]))"
            ".filter((each) => each.checkVisibility()).map((each) => each.textContent)",
            selector,
        )

    def read(self, selector: str) -> str:
        return "".join(self.read_all(selector))

    def reads(self, selector: str, expected: str) -> None:
        self.until(lambda: self.read(selector) == expected)

    def send(self, text: str) -> None:
        """Type a message, and Enter; a newline in it is a paste of lines."""
        field = self.find("#message")
        first, *further = text.split("\n")
        field.send_keys(first)
        for line in further:
            field.send_keys(Keys.SHIFT + Keys.ENTER + Keys.NULL + line)
        field.send_keys(Keys.ENTER)

    def idle(self) -> None:
        """Wait until no reply is written."""
        self.until(lambda: self.run("return document.getElementById('stop').hidden"))

    def ask(self, text: str) -> str:
        """Send a message and return the whole reply's text."""
        before = len(self.read_all("#messages > *"))
        self.send(text)
        self.until(lambda: len(self.read_all("#messages > *")) == before + 2)
        self.idle()
        return self.run(
            "return document.querySelector('#messages > :last-child .prose').textContent"
        )

    def replies(self) -> list[str]:
        return self.read_all(".assistant .prose")

    def stored(self) -> list[dict[str, Any]]:
        """The conversations in the browser's storage, the newest first."""
        found = self.run(
            "return Object.keys(localStorage).filter((key) => key.startsWith('glm3.conversation.'))"
            ".map((key) => localStorage.getItem(key))"
        )
        return sorted(map(json.loads, found), key=lambda each: -each["changed"])

    def press(self, *keys: str) -> None:
        """Press keys one by one, where the focus is and goes."""
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def write(self, *keys: str) -> None:
        """Type into what has the focus; `Keys.CONTROL` and its like hold until `Keys.NULL`."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """What has the focus: its id or its name for those who do not see it; "" is nothing."""
        return self.run(
            "const it = document.activeElement;"
            "const name = it.id || it.name || it.getAttribute('aria-label') || it.textContent;"
            "return it === document.body ? '' : name"
        )

    def complaints(self) -> list[str]:
        """What the console was told beside the failures, since the last time."""
        console = [entry["message"] for entry in self.browser.get_log("browser")]
        return [each for each in console if not any(known in each for known in self.failures)]

    def requests(self) -> list[str]:
        """Every address that was asked for since the last time."""
        events = [json.loads(entry["message"]) for entry in self.browser.get_log("performance")]
        return [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def shown(browser: webdriver.Chrome, service: Glm3Service, **options: Any) -> Iterator[Page]:
    """The page of a new server, which is a new origin and so has an empty storage.

    In the end nothing was reported to the console, and nothing was asked of another origin.
    """
    with served(service, **options) as server:
        page = Page(browser, server.url)
        page.complaints(), page.requests()  # of what was shown before
        try:
            yield page.open()
            complaints, requests = page.complaints(), page.requests()
            strangers = [url for url in requests if not url.startswith((page.url, "blob:"))]
            assert not complaints, complaints
            assert requests
            assert not strangers, strangers
        finally:
            browser.get("about:blank")
