"""The documentation as a site."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documentation.pages import REPOSITORY

import glm3sdk
import glm3sdk.testing

# What a browser fetches by itself; a link that a reader follows may lead anywhere.
FETCHED = {
    ("audio", "src"),
    ("embed", "src"),
    ("iframe", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("link", "href"),
    ("object", "data"),
    ("script", "src"),
    ("source", "src"),
    ("video", "src"),
}


class Fetched(HTMLParser):
    """Collects the addresses of what a page consists of, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            # A canonical address is said, not fetched.
            if (tag, name) in FETCHED and value and ("rel", "canonical") not in attrs:
                self.addresses.append(value)
            if name == "id" and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link or an anchor that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_of_the_site_comes_from_another_host(site: Path):
    pages = [*site.rglob("*.html")]
    assert len(pages) > 30
    for page in pages:
        found = Fetched(page.read_text("utf-8")).addresses
        assert found
        assert not [each for each in found if re.match(r"\w+:|//", each)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


def test_every_public_name_is_in_the_api_reference(site: Path):
    anchors: set[str] = set()
    for page in (site / "api").glob("*.html"):
        anchors |= Fetched(page.read_text("utf-8")).anchors
    names = [f"glm3sdk.{name}" for name in glm3sdk.__all__ if name != "__version__"]
    names += [f"glm3sdk.testing.{name}" for name in glm3sdk.testing.__all__]
    assert [name for name in names if name not in anchors] == []
