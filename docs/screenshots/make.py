"""Takes the pictures of the chat page for the docs: `python docs/screenshots/make.py`.

The bundled model answers, greedily, in headless Chromium. It needs Debian's packages chromium,
chromium-driver and fonts-noto-cjk.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "docs" / "images"
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

# The same letters on every machine, whatever else is installed.
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include>/etc/fonts/fonts.conf</include>
  <alias binding="strong">
    <family>sans-serif</family>
    <prefer><family>Noto Sans CJK SC</family></prefer>
  </alias>
  <alias binding="strong">
    <family>system-ui</family>
    <prefer><family>Noto Sans CJK SC</family></prefer>
  </alias>
</fontconfig>
"""

DESKTOP = {"width": 1180, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 375, "height": 720, "deviceScaleFactor": 2, "mobile": True}
RESULT = '{"temperature": 22, "condition": "晴"}'


def take(folder: Path) -> None:
    """Take the pictures.

    Args:
        folder: holds the configuration of the fonts while the browser runs.
    """
    from browser import chromium
    from selenium.webdriver.common.keys import Keys
    from server.chat_page import Page

    from glm3sdk import load_service
    from glm3sdk.server import Listener, create_app

    fonts = folder / "fonts.conf"
    fonts.write_text(FONTS, "utf-8")
    os.environ["FONTCONFIG_FILE"] = str(fonts)
    IMAGES.mkdir(exist_ok=True)
    with (
        load_service("tiny") as service,
        Listener(create_app(service, model_name="tiny"), port=0) as listener,
        chromium() as browser,
    ):
        page = Page(browser, listener.url)

        def picture(name: str, size: dict[str, int | bool], theme: str) -> None:
            page.protocol("Emulation.setDeviceMetricsOverride", **size)
            page.run("document.documentElement.dataset.theme = arguments[0]", theme)
            page.run("document.activeElement.blur()")
            page.protocol("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
            page.run("const it = document.getElementById('scroller'); it.scrollTop = 0")
            browser.save_screenshot(str(IMAGES / f"chat-page-{name}.png"))

        # Nothing is caught in the middle of a movement.
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        page.open()
        page.protocol("Emulation.setEmulatedMedia", features=[still])
        page.click("#settings")
        page.click("[name=greedy]")
        page.click("#settings-dialog [type=submit]")
        page.ask("晚上睡不着应该怎么办")
        page.click("#new")
        page.ask("写一个快排算法")
        picture("light", DESKTOP, "light")
        page.click("#new")
        page.click("#settings")
        page.click("#tools-example")
        page.click("#settings-dialog [type=submit]")
        page.ask("北京的天气怎么样？")
        page.find(".call textarea").send_keys(RESULT, Keys.ENTER)
        page.until(lambda: len(page.read_all(".assistant")) == 2)
        page.idle()
        picture("dark", DESKTOP, "dark")
        page.click("#conversations li:last-child .open")
        page.idle()
        picture("phone", PHONE, "light")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        take(Path(made))
