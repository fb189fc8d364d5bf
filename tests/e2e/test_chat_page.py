"""The chat page with the bundled model."""

from __future__ import annotations

import pytest
from browser import MISSING, chromium, is_installed
from selenium.webdriver.common.keys import Keys
from server.chat_page import Page

from glm3sdk import GenerationConfig, Glm3Service, Message
from glm3sdk.server import Listener, create_app


@pytest.mark.skipif(not is_installed(), reason=MISSING)
def test_the_bundled_model_answers_in_the_browser_and_calls_a_tool(tiny: Glm3Service):
    said = tiny.chat([Message.user("你好")], GenerationConfig(do_sample=False)).content
    with Listener(create_app(tiny, model_name="tiny"), port=0) as listener, chromium() as browser:
        page = Page(browser, listener.url).open()
        page.click("#settings")
        page.click("[name=greedy]")
        page.click("#settings-dialog [type=submit]")
        assert page.ask("你好") == said
        page.click("#new")
        page.click("#settings")
        page.click("#tools-example")
        page.click("#settings-dialog [type=submit]")
        page.ask("北京的天气怎么样？")
        assert page.read_all(".call dt, .call dd") == ["city", "北京"]
        page.find(".call textarea").send_keys('{"temperature": 22, "condition": "晴"}', Keys.ENTER)
        page.until(lambda: len(page.read_all(".assistant")) == 2)
        page.idle()
        assert "22" in page.replies()[-1]
