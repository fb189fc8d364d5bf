"""The guide for those who come from the reference has every section of its model card."""

from __future__ import annotations

import re
from pathlib import Path

from documentation.pages import REPOSITORY


def sections(text: str) -> list[str]:
    """What each heading begins with, up to a colon or a question mark; code has no headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)
        found.append(re.split("[:：？]", words)[0].strip())
    return found


def test_every_section_of_the_card_is_answered_in_its_order(shared_data: Path):
    card = shared_data.parent / "spec" / "reference-model-card.zh.md"
    guide = REPOSITORY / "docs" / "migration.md"
    asked = sections(card.read_text("utf-8"))
    assert len(asked) > 20
    assert sections(guide.read_text("utf-8")) == asked
