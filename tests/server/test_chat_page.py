"""The chat page in a real browser: conversations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from server.chat_page import PacedRuntime, Page, shown
from server.serving import CHAT, TOKENIZER, WEATHER, Served, call, scripted, until

from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import Prefill, ScriptedRuntime

LEFT = 'glm3_requests_total{endpoint="chat.completions",status="499"}'
XSS = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>not bold</b>'


def test_a_message_is_answered_and_a_reload_keeps_the_conversation(echo: Page):
    assert echo.read("#welcome h2") == "想聊点什么？"
    assert echo.read("#model") == "glm3"
    assert echo.ask("你好") == "你好"
    assert echo.ask("再见") == "再见"
    # A newline, two characters of three bytes each, and the end of the turn.
    assert re.fullmatch(r"8 个 token · \d+\.\d 秒", echo.read_all(".note")[-1])
    assert echo.read_all(".user .bubble") == ["你好", "再见"]
    assert echo.read("#title") == "你好"
    echo.open()
    assert echo.read_all(".user .bubble") == echo.replies() == ["你好", "再见"]
    assert echo.ask("还在吗") == "还在吗"
    (stored,) = echo.stored()
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant"] * 3


def test_a_reply_grows_with_its_tokens(paced: tuple[Page, PacedRuntime, Glm3Service]):
    page, runtime, _ = paced
    page.send("abcdefgh")
    page.until(lambda: page.find("#stop").is_displayed())
    seen = []
    for expected in ("ab", "abcde", "abcdefgh"):
        # The first token is the newline before the text; each step writes one more.
        runtime.let(len(expected) - len("".join(seen[-1:])))
        page.reads(".assistant .prose", expected)
        seen.append(expected)
    assert page.find("#stop").is_displayed()
    assert page.find("#messages").get_attribute("aria-busy") == "true"
    runtime.go_on()
    page.idle()
    assert page.read(".assistant .prose") == "abcdefgh"
    assert page.find("#messages").get_attribute("aria-busy") == "false"
    page.reads("#spoken", "回复：abcdefgh")


@pytest.mark.parametrize("by", ["key", "button"])
def test_stopping_frees_the_slot_and_keeps_what_came(
    paced: tuple[Page, PacedRuntime, Glm3Service], by: str
):
    page, runtime, service = paced
    page.send("abcdefgh")
    runtime.let(3)
    page.reads(".assistant .prose", "abc")
    assert service.load.busy == 1
    if by == "key":
        page.press(Keys.ESCAPE)
    else:
        page.click("#stop")
    page.idle()
    until(lambda: Served(page.url, None).metric(LEFT) == 1)
    runtime.go_on()
    until(lambda: service.load.busy == 0)
    assert page.replies() == ["abc"]
    assert page.read(".note") == "已停止"
    assert page.focused() == "message"
    assert page.ask("next") == "next"
    assert sum(map(len, runtime.batches)) <= 3 + 1 + len("next") + 1


def test_a_reload_in_the_middle_of_a_reply_stops_it_and_keeps_what_came(
    paced: tuple[Page, PacedRuntime, Glm3Service],
):
    page, runtime, service = paced
    page.send("abcdefgh")
    runtime.let(3)
    page.reads(".assistant .prose", "abc")
    page.open()
    runtime.go_on()
    until(lambda: service.load.busy == 0)
    assert page.replies() == ["abc"]
    assert page.read(".note") == "已停止"


def test_markup_stays_text(browser: webdriver.Chrome):
    code = f"```html\n{XSS}\n```"
    quoted = json.dumps(XSS)
    service = scripted(
        f"{XSS}\n\n{code}\n\n**{XSS}** `{XSS}`",
        [call("get_weather", f"city={quoted}"), SpecialToken.OBSERVATION],
        [call("get_weather", f"{XSS} ("), SpecialToken.OBSERVATION],
    )
    with shown(browser, service) as page:
        page.ask(XSS)
        assert page.read(".user .bubble") == XSS
        assert page.read_all(".prose p")[0] == page.read(".prose pre") == XSS
        assert page.read_all(".prose strong, .prose p code") == [XSS, XSS]
        page.ask("call")
        assert page.read(".call dd") == XSS
        page.find(".call textarea").send_keys(XSS, Keys.ENTER)
        page.until(lambda: len(page.read_all(".call")) == 2)
        page.idle()
        assert page.read(".call .result") == XSS
        assert XSS in page.read_all(".call")[1]
        page.click("#conversations .current [aria-label^=重命名]")
        page.write(Keys.CONTROL + "a" + Keys.NULL, XSS, Keys.ENTER)
        page.reads("#title", XSS)
        page.open()
        assert page.read("#conversations .open") == XSS
        assert page.run("return window.hacked") is None
        assert page.run("return document.querySelectorAll('main img, main b').length") == 0


def test_a_tool_call_is_a_card_and_its_result_goes_back(browser: webdriver.Chrome):
    runtime = ScriptedRuntime(
        ["我来查一下。", SpecialToken.ASSISTANT, call("get_weather", "city='北京', days=3")],
        "晴",
    )
    with shown(browser, Glm3Service(runtime=runtime, tokenizer=TOKENIZER)) as page:
        page.click("#settings")
        page.find("#tools").send_keys('[{"nam": 1}]')
        page.click("#settings-dialog [type=submit]")
        assert page.read("#tools-error") == "第 1 个工具不是带名称的函数定义。"
        page.run("document.getElementById('tools').value = ''")
        page.find("#tools").send_keys(json.dumps([WEATHER]))
        page.click("#settings-dialog [type=submit]")
        page.reads("#active", "1 个工具")
        assert page.ask("北京的天气怎么样？") == "我来查一下。"
        assert page.read(".call h3") == "get_weather"
        assert page.read_all(".call dt, .call dd") == ["city", "北京", "days", "3"]
        page.reads("#spoken", "回复：我来查一下。 模型调用了 get_weather，请填写结果。")
        # A card that waits is the same after a reload.
        page.open()
        page.find(".call textarea").send_keys('{"temperature": 22}')
        page.click(".calls [type=submit]")
        page.until(lambda: page.replies()[-1] == "晴")
        page.idle()
        assert page.read(".call .result") == '{"temperature": 22}'
        (stored,) = page.stored()
        _, asked, told, _ = stored["messages"]
        assert told["tool_call_id"] == asked["tool_calls"][0]["id"]
    prefills = [each for each in runtime.calls if isinstance(each, Prefill)]
    read = "".join(TOKENIZER.decode(each.input_ids) for each in prefills)
    assert '"get_weather"' in read
    assert '{"temperature": 22}' in read


def test_a_call_that_is_stopped_was_never_made(paced: tuple[Page, PacedRuntime, Glm3Service]):
    page, runtime, _ = paced
    turn = "get_weather\n```python\ntool_call(city='x', days=3)\n```"
    runtime.answer["call"] = TOKENIZER.encode(turn)
    page.send("call")
    runtime.let(turn.index("=3"))
    page.reads(".call pre", '{"city": "x"')
    assert page.read(".call h3") == "get_weather"
    page.press(Keys.ESCAPE)
    page.idle()
    assert page.read_all(".call") == []
    (stored,) = page.stored()
    assert [set(message) for message in stored["messages"]] == [
        {"role", "content"},
        {"role", "content", "note"},
    ]
    runtime.go_on()
    assert page.ask("next") == "next"


def test_settings_are_what_is_asked_for(browser: webdriver.Chrome, tmp_path: Path):
    with shown(browser, scripted("ok")) as page:
        page.click("#settings")
        page.find("[name=system]").send_keys("Be brief.")
        for name, value in {"temperature": "0.5", "top_p": "0.9", "seed": "7"}.items():
            page.find(f"[name={name}]").send_keys(value)
        page.find("[name=max_tokens]").send_keys("20")
        page.click("#settings-dialog [type=submit]")
        page.reads("#active", "系统提示词")
        page.ask("hi")
        asked = exported(page, tmp_path)
        assert asked == {
            "model": "glm3",
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 7,
            "max_tokens": 20,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "ok"},
            ],
        }
        # What was exported can be asked for as it is.
        assert Served(page.url, None).ask("POST", CHAT, asked)[0] == 200
        # A new conversation begins with the settings of the last one.
        page.click("#new")
        page.click("#settings")
        page.click("[name=greedy]")
        assert not page.find("[name=top_p]").is_enabled()
        page.click("#settings-dialog [type=submit]")
        page.ask("hi")
        asked = exported(page, tmp_path)
        assert (asked["temperature"], asked["max_tokens"]) == (0, 20)
        assert not {"top_p", "seed"} & set(asked)


def exported(page: Page, folder: Path) -> dict[str, Any]:
    page.protocol("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.click("#export")
    until(lambda: any(folder.glob("*.json")))
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text("utf-8"))
    path.unlink()
    return content


def test_conversations_are_made_renamed_and_deleted(echo: Page):
    titles = "#conversations .open"
    echo.ask("first")
    echo.click("#new")
    assert echo.read_all("#messages > *") == []
    echo.ask("second")
    assert echo.read_all(titles) == ["second", "first"]
    echo.click("#conversations li:last-child .open")
    assert echo.replies() == ["first"]
    echo.click("#conversations .current [aria-label^=重命名]")
    echo.write(Keys.CONTROL + "a" + Keys.NULL, "甲", Keys.ENTER)
    echo.until(lambda: echo.read_all(titles) == ["second", "甲"])
    assert echo.focused() == "甲"
    assert "甲" in echo.browser.title
    echo.click("#conversations .current [aria-label^=删除]")
    assert echo.read("#delete-name") == "甲"
    echo.press(Keys.ESCAPE)
    echo.until(lambda: not echo.find("#delete-dialog").is_displayed())
    assert len(echo.read_all(titles)) == 2
    echo.click("#conversations .current [aria-label^=删除]")
    echo.click("#delete-dialog [type=submit]")
    echo.until(lambda: echo.read_all(titles) == ["second"])
    assert [each["messages"][0]["content"] for each in echo.stored()] == ["second"]


def test_the_last_turn_is_tried_again_edited_and_copied(echo: Page):
    echo.protocol("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    echo.ask("one")
    echo.ask("two")
    echo.click(".assistant:last-child [aria-label=重试]")
    echo.until(lambda: echo.replies() == ["one", "two"])
    echo.idle()
    echo.click(".user [aria-label=编辑]")
    assert echo.find("#message").get_property("value") == "two"
    echo.press(Keys.ESCAPE)
    assert echo.find("#message").get_property("value") == ""
    echo.click(".user [aria-label=编辑]")
    echo.press("!")
    echo.press(Keys.ENTER)
    echo.until(lambda: echo.replies() == ["one", "two!"])
    echo.idle()
    (stored,) = echo.stored()
    assert [each["content"] for each in stored["messages"]] == ["one", "one", "two!", "two!"]
    echo.click(".assistant:last-child [aria-label=复制]")
    echo.until(lambda: echo.run("return navigator.clipboard.readText()") == "two!")


def test_a_key_is_asked_for_and_is_gone_with_the_tab(browser: webdriver.Chrome):
    with shown(browser, scripted("ok"), api_key="geheim") as page:
        page.failures.append("status of 401")
        page.reads("#key-reason", "服务器需要 API 密钥。")
        page.press("falsch", Keys.ENTER)
        page.reads("#key-reason", "服务器不接受这个 API 密钥。")
        page.write(Keys.CONTROL + "a" + Keys.NULL, "geheim", Keys.ENTER)
        page.reads("#model", "glm3")
        page.open()
        assert page.ask("hi") == "ok"
        assert page.run("return JSON.stringify(localStorage)").count("geheim") == 0
        # One that has become wrong is asked for again, and the message is not lost.
        page.run("sessionStorage.clear()")
        page.send("again")
        page.reads("#key-reason", "服务器需要 API 密钥。")
        page.press("geheim", Keys.ENTER)
        page.until(lambda: page.replies() == ["ok", "ok"])
        page.idle()


def test_what_goes_wrong_is_told_and_can_be_tried_again(
    paced: tuple[Page, PacedRuntime, Glm3Service],
):
    page, runtime, service = paced
    page.failures += ["status of 429", "status of 400", "ERR_INTERNET_DISCONNECTED"]
    page.send("first")
    until(lambda: service.load.busy == 1)
    page.click("#new")
    page.send("second")
    page.until(lambda: page.read("#failure"))
    assert re.match(r"服务器繁忙，请在 \d+ 秒后重试。the queue is full", page.read("#failure"))
    assert page.read_all(".user .bubble") == ["second"]
    runtime.go_on()
    # The other conversation went on meanwhile.
    page.click("#conversations li:last-child .open")
    page.until(lambda: page.replies() == ["first"])
    page.idle()
    page.click("#conversations li:first-child .open")
    page.click("#failure button")
    page.until(lambda: page.replies() == ["second"])
    page.idle()
    assert page.read("#failure") == ""
    page.send("x" * 600)
    page.until(lambda: "超过了模型的上下文长度" in page.read("#failure"))
    page.click("#new")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.protocol("Network.enable")
    page.protocol("Network.emulateNetworkConditions", **offline)
    page.send("third")
    page.until(lambda: "无法连接服务器" in page.read("#failure"))
    page.protocol("Network.emulateNetworkConditions", **{**offline, "offline": False})
    page.click("#failure button")
    page.until(lambda: page.replies() == ["third"])
    page.idle()


def test_a_failure_in_the_middle_of_a_reply_keeps_what_came(
    paced: tuple[Page, PacedRuntime, Glm3Service],
):
    page, runtime, _ = paced
    page.send("abcdef")
    runtime.let(3)
    page.reads(".assistant .prose", "abc")
    runtime.fail_decode = ValueError("boom")
    runtime.go_on()
    page.until(lambda: page.read("#failure").startswith("服务器出错了。"))
    assert page.replies() == ["abc"]
    page.click("#failure button")
    page.until(lambda: page.replies() == ["abcdef"])
    page.idle()
