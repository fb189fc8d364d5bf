"""What the tests take from a page: its blocks of code, in order, and what is said about each.

A block runs unless the line before it is `<!-- not run: REASON -->`. A block with `title="FILE"`
is written to that file. `<!-- setup: COMMAND -->` runs a shell command that readers do not see.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+)(?P<language>[\w-]*)(?P<rest>.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_NOT_RUN = re.compile(r"^ *<!-- not run: (\S.*) -->$")
_SETUP = re.compile(r"^ *<!-- setup: (\S.*) -->$")


@attrs.frozen
class Block:
    """A fenced block, or a hidden set-up (language "setup").

    Attributes:
        place: the page and the line, for messages.
        language: what stands behind the fence; empty where nothing does.
        code: the text inside, without the indentation of the fence.
        file: the file that it is to be written to.
        not_run: why it cannot run in the tests.
    """

    place: str
    language: str
    code: str
    file: str | None = None
    not_run: str | None = None


def pages() -> list[str]:
    """Every page whose code is held to run, from the repository's root."""
    found = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in found)


def read_blocks(page: str) -> list[Block]:
    """The blocks of a page in the order in which a reader meets them."""
    return parse((REPOSITORY / page).read_text("utf-8"), page)


def parse(text: str, page: str) -> list[Block]:
    """The blocks of a page's text."""
    found: list[Block] = []
    lines = enumerate(text.splitlines(), start=1)
    reason = None
    for number, line in lines:
        place = f"{page}:{number}"
        if opening := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == opening["marks"]:
                    break
                body.append(inner)
            else:
                raise AssertionError(f"{place}: the block is never closed")
            title = _TITLE.search(opening["rest"])
            code = textwrap.dedent("\n".join(body)) + "\n"
            found.append(
                Block(place, opening["language"], code, title and title[1], not_run=reason)
            )
        elif setup := _SETUP.match(line):
            found.append(Block(place, "setup", setup[1]))
        marked = _NOT_RUN.match(line)
        reason = marked and marked[1]
    return found
