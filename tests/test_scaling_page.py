"""docs/scaling.md tells what the formulas and `glm3 plan` tell now."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest

from glm3sdk.domain import communication

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
PARAMETERS = 6_243_584_000


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "benchmarks" / "scaling_projection.py"))


def test_the_tables_are_those_that_the_formulas_give(script: dict[str, Any]) -> None:
    tables = list(script["tables"]())
    assert len(tables) == 4
    for table in tables:
        assert table in PAGE
    # Nothing stands there that the script did not print.
    assert PAGE.count("GB sent a card |") == len(tables)
    assert len(re.findall(r"^\| [0-9,]+ \| \d+ x \d+ \|", PAGE, re.MULTILINE)) == 32


def test_a_row_is_what_one_computes_by_hand(script: dict[str, Any]) -> None:
    full, tensor, weak, lora = script["CASES"]
    eight = script["projection"](full, 8)
    # Float32 gradients to their shards, bfloat16 weights from there; 3 x 4 bytes to 7 cards.
    assert eight.plan.sent == 7 * (4 + 2) * PARAMETERS // 8 + 7 * 12
    assert eight.plan.sent_between_servers == 0
    assert eight.compute_s == pytest.approx(1024 * 2048 / 8 / 3450)
    # 199 tensors, each with two calls, over 7 links of 28 GB/s of which 0.7 is reached.
    bandwidth = eight.plan.sent / (7 * 28e9 * 0.7)
    assert eight.exchange_s == pytest.approx(bandwidth + 400 * 10.5e-6, rel=1e-3)
    # On 16 servers a card exchanges an eighth of it with 15 others.
    many = script["projection"](full, 128)
    between = 15 * (4 + 2) * PARAMETERS // 128 + 15 * 12
    assert many.plan.sent_between_servers == between
    assert many.exchange_s > bandwidth + between / (25e9 * 0.7)
    # Every table shares out a step's sequences among all cards.
    for cards in (8, 1024):
        for case in (full, tensor, lora):
            assert script["projection"](case, cards).plan.tokens_per_step == 1024 * 2048
        assert script["projection"](weak, cards).plan.tokens_per_step == 8 * cards * 2048
    assert script["projection"](lora, 8).compute_s == pytest.approx(eight.compute_s * 3 / 4)


def test_the_figures_of_the_text_are_those_of_the_tables(script: dict[str, Any]) -> None:
    def planned(cards: int) -> Any:
        return script["projection"](script["CASES"][0], cards).plan

    for sentence in (
        f"it takes {planned(8).total / 2**30:.0f} GiB",
        f"{planned(1024).sent / 1e9:.0f} GB a card on 1,024 cards, "
        f"{planned(256).sent / 1e9:.0f} on 256",
        f"are {script['utilisation']():.0%} of the card's peak",
        f"| {script['TOKENS_PER_SECOND']:,.0f} tokens/s a card |",
        f"{script['PEAK_BF16'] / 1e12} TFLOPS in bfloat16, {script['MEMORY_GIB']} GiB",
        f"{7 * script['LINK'] / 1e9:.0f} GB/s a card, one way: {script['LINK'] / 1e9:.0f} to each",
        f"| {script['ROCE'] / 1e9:.0f} GB/s a card, one way |",
        f"| {script['EFFICIENCY']} |",
    ):
        assert sentence in PAGE, sentence


def test_the_formulas_are_those_of_the_module() -> None:
    text = communication.__doc__ or ""
    block = text[text.index("    every micro-batch") : text.index("An adapter's frozen")]
    assert textwrap.dedent(block).strip() in PAGE


def test_the_page_says_that_nothing_was_run_on_ascend() -> None:
    assert "**Nothing on this page was run on an Ascend card**" in PAGE
    linked = re.findall(r"`((?:tests|glm3sdk|benchmarks)/[\w/.]+)`", PAGE)
    assert len(linked) >= 5
    for name in linked:
        assert (REPOSITORY / name).is_file(), name
