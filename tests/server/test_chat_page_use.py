"""The chat page in a real browser: languages, themes, keys, phones and storage."""

from __future__ import annotations

import re

from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from server.chat_page import PacedRuntime, Page, shown
from server.serving import call, scripted

from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.server.app import STATIC
from glm3sdk.services.chat import Glm3Service

PHONE = {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True}


def test_language_and_theme_are_chosen_and_kept(echo: Page):
    def ground() -> str:
        return echo.run("return getComputedStyle(document.body).backgroundColor")

    assert echo.run("return document.documentElement.lang") == "zh-CN"
    light = ground()
    echo.protocol(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    dark = ground()
    assert light != dark
    choose(echo, "theme", "light")
    assert ground() == light
    echo.protocol("Emulation.setEmulatedMedia", features=[])
    choose(echo, "theme", "dark")
    choose(echo, "language", "en")
    assert echo.read("#welcome h2") == "What would you like to know?"
    assert echo.find("#message").get_attribute("placeholder") == "Write a message"
    echo.ask("hi")
    assert echo.read(".assistant .note").startswith("4 tokens · ")
    echo.open()
    assert (ground(), echo.read("#new")) == (dark, "New conversation")
    assert echo.find("#settings").get_attribute("aria-label") == "Settings"
    # No text is left in the other language, and none is missing.
    assert not re.search(r"[\u4e00-\u9fff]", echo.read("#page"))
    assert "undefined" not in echo.run("return document.body.textContent")


def choose(page: Page, name: str, value: str) -> None:
    page.click(f"#{name} [value={value}]")


def test_both_languages_say_the_same_things():
    texts = (STATIC / "texts.js").read_text("utf-8")
    english, chinese = re.findall(r"const [A-Z]+ = \{\n(.*?)\n\};", texts, re.DOTALL)[:2]
    names = re.findall(r"^  (\w+):", english, re.MULTILINE)
    assert names == re.findall(r"^  (\w+):", chinese, re.MULTILINE)
    used = "".join(each.read_text("utf-8") for each in STATIC.glob("*") if each.name != "texts.js")
    assert [name for name in names if not re.search(rf"\b{name}\b", used)] == []
    named = set(re.findall(r'data-(?:text|label|hint)="(\w+)"|\btext\("(\w+)"', used))
    assert {a or b for a, b in named} <= set(names)


def test_all_can_be_done_by_keyboard(echo: Page):
    assert echo.focused() == "message"
    echo.write("a", Keys.SHIFT + Keys.ENTER + Keys.NULL, "b", Keys.ENTER)
    echo.until(lambda: echo.replies() == ["b"])
    echo.idle()
    assert echo.stored()[0]["messages"][0]["content"] == "a\nb"
    assert echo.focused() == "message"
    seen = []
    while "settings" not in seen and len(seen) < 30:
        echo.press(Keys.TAB)
        seen.append(echo.focused())
        outline = echo.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or not seen[-1], f"no focus is seen on {seen[-1]}"
    assert {"跳到输入框", "new", "language", "theme", "key", "export", "settings"} <= set(seen)
    echo.press(Keys.ENTER)
    echo.until(lambda: echo.focused() == "取消")
    echo.press(Keys.TAB, "short", Keys.ENTER)
    echo.press(Keys.ESCAPE)
    echo.until(lambda: echo.focused() == "settings")
    assert echo.read("#active") == ""


def test_enter_that_chooses_a_word_of_an_input_method_sends_nothing(echo: Page):
    echo.find("#message").click()
    echo.protocol("Input.imeSetComposition", text="nihao", selectionStart=5, selectionEnd=5)
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    echo.protocol("Input.dispatchKeyEvent", type="rawKeyDown", **enter)
    echo.protocol("Input.dispatchKeyEvent", type="keyUp", **enter)
    echo.protocol("Input.insertText", text="你好")
    assert echo.find("#message").get_property("value") == "你好"
    assert echo.read_all("#messages > *") == []
    echo.press(Keys.ENTER)
    echo.until(lambda: echo.replies() == ["你好"])
    echo.idle()


def test_a_phone_shows_all_without_scrolling_sideways(browser: webdriver.Chrome):
    long = "x" * 120
    service = scripted(
        f"{long}\n\n```\n{long}\n```",
        [call("f" * 60, f"{long}='{long}'"), SpecialToken.OBSERVATION],
    )
    with shown(browser, service) as page:
        try:
            page.protocol("Emulation.setDeviceMetricsOverride", **PHONE)
            page.ask(long)
            page.ask("call")
            for selector in ("#settings", "#menu", "#key"):
                page.click(selector)
                assert page.run("return document.documentElement.scrollWidth") == PHONE["width"]
                assert page.run("return document.querySelector('main').scrollWidth") <= 375
                if selector == "#settings":
                    page.click("#settings-dialog [data-close]")
            page.press(Keys.ESCAPE)
            page.until(lambda: not page.find("#key-dialog").is_displayed())
            page.press(Keys.ESCAPE)
            page.until(lambda: not page.find("#sidebar").is_displayed())
            assert page.focused() == "menu"
            page.click("#menu")
            page.click("#new")
            page.until(lambda: not page.find("#sidebar").is_displayed())
            assert page.find("#welcome").is_displayed()
        finally:
            page.protocol("Emulation.clearDeviceMetricsOverride")


def test_the_newest_text_is_followed_until_somebody_scrolls_away(
    paced: tuple[Page, PacedRuntime, Glm3Service],
):
    page, runtime, _ = paced
    page.browser.set_window_size(900, 420)
    try:
        runtime.answer["long"] = "\n\n".join("x" * 60)
        page.send("long")
        runtime.let(91)
        page.until(lambda: len(page.read_all(".prose p")) == 31)
        scroller = "const it = document.getElementById('scroller');"
        distance = f"{scroller} return it.scrollHeight - it.scrollTop - it.clientHeight"
        page.until(lambda: page.run(distance) < 2)
        page.run(f"{scroller} it.scrollTop = 0")
        page.until(lambda: page.find("#newest").is_displayed())
        runtime.let(30)
        page.until(lambda: len(page.read_all(".prose p")) == 41)
        assert page.run(f"{scroller} return it.scrollTop") == 0
        page.click("#newest")
        page.until(lambda: page.run(distance) < 2)
        runtime.go_on()
        page.idle()
        page.until(lambda: page.run(distance) < 2)
    finally:
        page.browser.set_window_size(1280, 860)


def test_a_full_storage_is_told_and_disturbs_nothing(echo: Page):
    echo.run(
        "for (let size = 2 ** 22; size >= 1; size /= 2) try {"
        "  for (;;) localStorage.setItem('other' + size + Math.random(), 'x'.repeat(size));"
        "} catch {}"
    )
    assert echo.ask("hi") == "hi"
    assert "存储空间已满" in echo.read("#notice")
    assert echo.stored() == []
    echo.run("localStorage.clear()")
    assert echo.ask("there") == "there"
    assert echo.read("#notice") == ""
    assert len(echo.stored()) == 1


def test_old_conversations_make_room_and_damaged_ones_are_left_alone(echo: Page):
    echo.ask("hi")
    echo.run(
        "const key = Object.keys(localStorage).find((each) => each.includes('.conversation.'));"
        "const one = JSON.parse(localStorage.getItem(key));"
        "for (let n = 0; n < 99; n++) {"
        "  const id = 'old' + n;"
        "  const old = JSON.stringify({...one, id, title: id, changed: 1000 + n});"
        "  localStorage.setItem('glm3.conversation.' + id, old);"
        "}"
        'localStorage.setItem(\'glm3.conversation.bad\', \'{"id": "bad", "messages": [{}]}\');'
        "localStorage.setItem('glm3.conversation.cut', '{\"id\"');"
    )
    echo.open()
    assert len(echo.read_all("#conversations li")) == 100
    echo.click("#new")
    echo.ask("more")
    titles = echo.read_all("#conversations .open")
    assert (len(titles), titles[0], titles[-1]) == (100, "more", "old1")
    assert echo.run("return localStorage.getItem('glm3.conversation.cut')") == '{"id"'


def test_what_another_tab_writes_is_seen(echo: Page):
    echo.ask("here")
    first = echo.browser.current_window_handle
    echo.browser.switch_to.new_window("tab")
    try:
        echo.open()
        assert echo.replies() == ["here"]
        echo.ask("there")
    finally:
        echo.browser.close()
        echo.browser.switch_to.window(first)
    echo.until(lambda: echo.replies() == ["here", "there"])


def test_the_page_is_made_of_its_own_files_alone():
    for path in STATIC.glob("*"):
        written = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|[^:\"'`]// .*$", "", written, flags=re.MULTILINE), (
            path
        )
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", written)
    index = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", index)
