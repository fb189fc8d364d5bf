"""The options that say how a reply is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import click

from glm3sdk.domain.chat import Usage
from glm3sdk.domain.generation import GenerationConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--max-new-tokens", type=int, metavar="N", help="Most tokens of the reply."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: 0.8]"),
    click.option("--top-p", type=float, metavar="P", help="Nucleus sampling.  [default: 0.8]"),
    click.option("--top-k", type=int, metavar="K", help="0 is off.  [default: 0]"),
    click.option("--repetition-penalty", type=float, metavar="R", help="1 is off.  [default: 1]"),
    click.option("--seed", type=int, metavar="N", help="Reproduces a sampled reply."),
    click.option("--greedy", is_flag=True, help="Take the likeliest token each time."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the reply; repeatable."),
    click.option(
        "--prompt-lookup",
        "prompt_lookup_num_tokens",
        type=int,
        metavar="N",
        help="Most tokens to guess from the text so far and verify in one step; the same text, "
        "sooner.  [default: 0]",
    ),
)


def generation_options(command: _Command) -> _Command:
    """Add the options that `generation_config` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def generation_config(
    *, greedy: bool, max_seq_length: int | None, **options: Any
) -> GenerationConfig:
    """Read the options of a command; those that were not given keep their defaults.

    Raises:
        InvalidGenerationConfigError: a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if greedy:
        given["do_sample"] = False
    if max_seq_length is not None and max_seq_length > 0:
        given["max_length"] = max_seq_length
    return GenerationConfig(**given)


def usage_json(usage: Usage) -> dict[str, int]:
    """Token counts as a JSON object."""
    return {**attrs.asdict(usage), "total_tokens": usage.total_tokens}
