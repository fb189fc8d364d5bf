"""Progress on a terminal; a pipe gets none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ShowBytes = Callable[[str, int, int], None]
"""Is told a part of the work, the bytes of it that are done, and how many there are."""


def is_terminal() -> bool:
    """Whether standard error, where progress is shown, is a person's."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def byte_bars(
    title: str = "", *, together: bool = False, transient: bool = False
) -> Iterator[ShowBytes | None]:
    """Bars of bytes, speed and time left; None where standard error is no terminal.

    They appear with the first bytes, so that nothing is shown of what is there already.

    Args:
        title: a line above the bars; "" is none.
        together: one bar, which names the part at hand, rather than a bar for each part.
        transient: whether they go when the work ends.
    """
    if not is_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
        # What goes to a pipe must not be drawn above the bars instead.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    tasks: dict[str, Any] = {}

    def show(part: str, done: int, total: int) -> None:
        if not bars.live.is_started:
            if title:
                bars.console.print(title, markup=False, highlight=False, soft_wrap=True)
            bars.start()
        key = "" if together else part
        if key not in tasks:
            tasks[key] = bars.add_task(part, total=total)
        bars.update(tasks[key], completed=done, total=total, description=part)

    try:
        yield show
    finally:
        bars.stop()


def size_text(size: float) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.2f} GB"
