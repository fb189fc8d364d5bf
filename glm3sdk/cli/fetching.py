"""What a terminal shows while a model is fetched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.pulling import PullProgress


@contextmanager
def fetching(model: str) -> Iterator[Callable[[PullProgress], None] | None]:
    """A bar of bytes, speed and time left; None where standard error is no terminal.

    It appears with the first bytes, so that nothing is shown of a model that is there.
    """
    if sys.stderr is None or not sys.stderr.isatty():
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

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task("", total=None)

    def show(progress: PullProgress) -> None:
        if not bar.live.is_started:
            bar.console.print(f"fetching {model}", markup=False, highlight=False, soft_wrap=True)
            bar.start()
        bar.update(task, completed=progress.done, total=progress.total, description=progress.file)
        if progress.done == progress.total:
            bar.stop()

    try:
        yield show
    finally:
        bar.stop()


def size_text(size: float) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.2f} GB"
