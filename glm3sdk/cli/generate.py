"""`glm3 generate`."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from glm3sdk.cli.evaluate import config_options, counter, from_config
from glm3sdk.cli.generation import generation_config, generation_options, usage_json
from glm3sdk.cli.input import read_stdin
from glm3sdk.cli.loading import Loaders, loaded_service, model_options
from glm3sdk.cli.screen import Screen
from glm3sdk.domain.chat import Message
from glm3sdk.domain.prompt import parse_ready_made

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.domain.generation import GenerationConfig
    from glm3sdk.services.chat import Glm3Service

_DEFAULT = ParameterSource.DEFAULT
# Keys of a run configuration that have an option of another name.
_OPTIONS = {
    "model.path": "--model",
    "runtime.name": "--runtime",
    "generation.max_length": "--max-seq-length",
}
_WRITTEN_NEWLINE = re.compile(r"(<\|(?:system|user|assistant|observation)\|> *)\\n")


@click.command()
@click.argument("prompt", required=False)
@config_options
@click.option(
    "--input",
    "source",
    type=click.Path(),
    metavar="FILE.jsonl",
    help='Answer each line: {"prompt": ...}, {"messages": [...]} or {"content": ...}.',
)
@click.option(
    "-o", "--output", "target", type=click.Path(), metavar="FILE.jsonl", help="Where answers go."
)
@model_options
@generation_options
@click.option("--json", "as_json", is_flag=True, help="Print the completion as one JSON object.")
@click.make_pass_decorator(Loaders, ensure=True)
def generate(
    loaders: Loaders,
    /,
    *,
    prompt: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    source: str | None,
    target: str | None,
    as_json: bool,
    model: str,
    runtime: str | None,
    max_seq_length: int | None,
    **generation: Any,
) -> None:
    r"""Continue PROMPT ("-" reads standard input), or answer the lines of a file.

    Plain text is read after [gMASK] sop. A prompt that begins with "[gMASK]sop<|user|>", or
    another role, is read as special tokens and messages. Options stand above CONFIG, and
    --set above them.

    \b
    Examples:
      glm3 generate "从前有座山" --max-new-tokens 64
      glm3 generate --input prompts.jsonl --output answers.jsonl --model runs/first
    """
    _check_usage(prompt=prompt, source=source, target=target, as_json=as_json)
    if prompt is not None:
        prompt = with_newlines(read_stdin() if prompt == "-" else prompt)
        Message.user(prompt)  # refuses half a character before a model is loaded
    if prompt is not None and config is None and not overrides:
        chosen = generation_config(max_seq_length=max_seq_length, **generation)
        with loaded_service(
            loaders, model=model, runtime=runtime, max_seq_length=max_seq_length
        ) as service:
            _answer(service, prompt, chosen, as_json=as_json)
        return
    from glm3sdk.bootstrap.prediction import load_predictor

    stop = generation.pop("stop")
    ctx = click.get_current_context()
    is_default = ctx.get_parameter_source("model") is _DEFAULT
    predictor = from_config(
        partial(load_predictor, stop=stop),
        config,
        overrides,
        given=_given(
            model=None if is_default else model,
            runtime=runtime,
            max_seq_length=max_seq_length,
            **generation,
        ),
        # As a prompt without a configuration: what the options' help says.
        otherwise={"mode": "predict", "generation.do_sample": True},
        options=_OPTIONS | {f"generation.{each.name}": each.opts[0] for each in ctx.command.params},
    )
    if prompt is not None:
        predictor.model.check(prompt)
        with predictor.load() as service:
            _answer(service, prompt, predictor.model.generation, as_json=as_json)
        return
    with counter() as count:
        answered = predictor.run(
            source or "", target or "", progress=lambda done, total: count(done, total, "answered")
        )
    click.echo(f"wrote {answered} answers to {target}")


def _check_usage(
    *, prompt: str | None, source: str | None, target: str | None, as_json: bool
) -> None:
    if prompt is None and source is None:
        raise click.UsageError("Missing argument 'PROMPT' (or --input FILE --output FILE).")
    if prompt is not None and source is not None:
        raise click.UsageError("pass either PROMPT or --input, not both")
    if (source is None) != (target is None):
        raise click.UsageError("--input and --output belong together")
    if source is not None and as_json:
        raise click.UsageError("--json prints one completion; --output is JSON Lines anyway")


def _given(
    *, model: str | None, max_seq_length: int | None, runtime: str | None, greedy: bool, **more: Any
) -> dict[str, Any]:
    """Options that were given, by their keys in a run configuration."""
    values = {
        "model.path": model,
        "runtime.name": runtime,
        "generation.max_seq_length": max_seq_length,
        "generation.max_length": max_seq_length,
        "generation.do_sample": False if greedy else None,
        **{f"generation.{name}": value for name, value in more.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def _answer(service: Glm3Service, prompt: str, config: GenerationConfig, *, as_json: bool) -> None:
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
