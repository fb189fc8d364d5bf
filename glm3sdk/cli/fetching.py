"""What a terminal shows while a model is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glm3sdk.cli.progress import byte_bars

if TYPE_CHECKING:  # it imports numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.pulling import PullProgress


@contextmanager
def fetching(model: str) -> Iterator[Callable[[PullProgress], None] | None]:
    """A bar of all bytes of a model, with the file at hand; None where there is no terminal."""
    with byte_bars(f"fetching {model}", together=True) as bar:
        yield bar and (lambda progress: bar(progress.file, progress.done, progress.total))


def fetched(model: str) -> str:
    """The directory of a model that a name or a URI stands for; a path as it is."""
    from glm3sdk.bootstrap.models import is_fetched, model_directory

    if model and not is_fetched(model):
        return model
    with fetching(model) as progress:
        return str(model_directory(model, progress=progress))
