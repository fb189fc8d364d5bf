"""From the options of a command to a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from glm3sdk.cli.completing import complete_model, complete_runtime
from glm3sdk.cli.progress import is_terminal
from glm3sdk.domain.published_models import PUBLISHED_MODELS

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.ports.tokenizer import Tokenizer
    from glm3sdk.services.chat import Glm3Service

RUNTIME_HELP = "What runs it.  [default: what the model was converted for, else mindspore-cpu]"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _load_service(model: str, **options: Any) -> Glm3Service:
    from glm3sdk.bootstrap import load_service

    return load_service(model, **options)


def _fetch(model: str) -> str:
    """Have a model that is to be fetched in the cache, behind a bar, and give its directory."""
    if "://" not in model and model not in PUBLISHED_MODELS:
        return model
    from glm3sdk.bootstrap.models import model_directory
    from glm3sdk.cli.fetching import fetching

    with fetching(model) as progress:
        return str(model_directory(model, progress=progress))


def _load_tokenizer(path: str) -> Tokenizer:
    from glm3sdk.bootstrap import load_tokenizer

    return load_tokenizer(path)


@attrs.frozen
class Loaders:
    """Where the commands get a model from; tests pass their own.

    Attributes:
        service: takes a model and keyword arguments as `bootstrap.load_service` does.
        tokenizer: takes a path as `bootstrap.load_tokenizer` does.
        fetch: takes a model and has it on this machine; gives what `service` is to load.
    """

    service: Callable[..., Glm3Service] = _load_service
    tokenizer: Callable[[str], Tokenizer] = _load_tokenizer
    fetch: Callable[[str], str] = _fetch


def model_options(command: _Command) -> _Command:
    """Add the options that choose a model: `model`, `runtime`, `max_seq_length`."""
    for option in (
        click.option(
            "--max-seq-length",
            type=int,
            metavar="TOKENS",
            help="Most tokens of prompt and reply together.  [default: the model's, up to 8192]",
        ),
        click.option(
            "--runtime", metavar="NAME", shell_complete=complete_runtime, help=RUNTIME_HELP
        ),
        click.option(
            "--model",
            default="tiny",
            show_default=True,
            metavar="MODEL",
            shell_complete=complete_model,
            help="A directory in Hugging Face layout, a name (tiny, glm3-6b), or a URI to fetch.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def loaded_service(
    loaders: Loaders,
    *,
    model: str,
    runtime: str | None,
    max_seq_length: int | None,
    slots: int = 1,
) -> Iterator[Glm3Service]:
    """Load a model, by default for one conversation; close it unless Ctrl-C ends the command."""
    options = {"runtime": runtime, "max_seq_length": max_seq_length}
    given = {name: value for name, value in options.items() if value is not None}
    directory = loaders.fetch(model)
    with _spinner(f"loading {model} ..."):
        service = loaders.service(directory, slots=slots, **given)
    try:
        yield service
    except KeyboardInterrupt:
        # Closing waits for the step under way, which may be a long compilation.
        raise
    except BaseException:
        service.close()
        raise
    service.close()


def _spinner(message: str) -> AbstractContextManager[object]:
    if not is_terminal():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(message)
