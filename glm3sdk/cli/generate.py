"""`glm3 generate`."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from glm3sdk.cli.generation import generation_config, generation_options, usage_json
from glm3sdk.cli.input import read_stdin
from glm3sdk.cli.loading import Loaders, loaded_service, model_options
from glm3sdk.cli.screen import Screen
from glm3sdk.domain.chat import Message
from glm3sdk.domain.prompt import parse_ready_made

_WRITTEN_NEWLINE = re.compile(r"(<\|(?:system|user|assistant|observation)\|> *)\\n")


@click.command()
@click.argument("prompt")
@model_options
@generation_options
@click.option("--json", "as_json", is_flag=True, help="Print the completion as one JSON object.")
@click.make_pass_decorator(Loaders, ensure=True)
def generate(
    loaders: Loaders,
    /,
    *,
    prompt: str,
    as_json: bool,
    model: str,
    runtime: str | None,
    max_seq_length: int | None,
    **generation: Any,
) -> None:
    """Continue PROMPT ("-" reads standard input).

    Plain text is read after [gMASK] sop. A prompt that begins with "[gMASK]sop<|user|>", or
    another role, is read as special tokens and messages.
    """
    config = generation_config(max_seq_length=max_seq_length, **generation)
    prompt = with_newlines(read_stdin() if prompt == "-" else prompt)
    Message.user(prompt)  # refuses half a character before a model is loaded
    with loaded_service(
        loaders, model=model, runtime=runtime, max_seq_length=max_seq_length
    ) as service:
        if as_json:
            completion = service.generate(prompt, config)
            values = {
                "text": completion.text,
                "finish_reason": str(completion.finish_reason),
                "usage": usage_json(completion.usage),
            }
            click.echo(json.dumps(values, ensure_ascii=False))
            return
        screen = Screen()
        try:
            screen.show_completion(service.stream_generate(prompt, config))
        except KeyboardInterrupt:
            screen.interrupted()
            raise


def with_newlines(prompt: str) -> str:
    r"""A ready-made prompt with the newline behind each role, however it was typed.

    In the double quotes of a shell, `"<|user|> \n hi"` holds a backslash and an n, and
    prompts of this shape are passed around so. Elsewhere a backslash stays one.
    """
    if parse_ready_made(prompt) is None:
        return prompt
    return _WRITTEN_NEWLINE.sub(r"\1\n", prompt)
