"""`glm3 checkpoint inspect` and `verify`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.completing import complete_model_or_file
from glm3sdk.cli.fetching import fetched
from glm3sdk.cli.progress import byte_bars, size_text
from glm3sdk.errors import InvalidCheckpointError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.domain.model_fit import ModelFit
    from glm3sdk.services.inspection import FileCheck, Inspection

_FORMATS = {
    "hugging-face": "a directory in Hugging Face layout",
    "published": "a checkpoint of this SDK (manifest.json)",
    "lora": "a LoRA adapter",
    "sharded": "a sharded checkpoint (rank_N/)",
    "mindspore": "a MindSpore .ckpt",
    "mindspore-safetensors": "safetensors for MindSpore",
    "safetensors": "safetensors",
    "torch": "a torch checkpoint",
}
_NAMED = 3
_WORDS = {"ok": "ok", "unknown": "no digest", "damaged": "DAMAGED"}


@click.command()
@click.argument("model", metavar="PATH", shell_complete=complete_model_or_file)
@click.option("--tensors", is_flag=True, help="List every tensor's name, shape and dtype.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in bytes.")
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    r"""Tell what is stored at PATH: its format, model, dtypes and files. No weights are read.

    PATH is a model's directory, a LoRA adapter's, a finetune run's, one with rank_0, rank_1,
    ..., a .ckpt, .safetensors or .bin file, or the name of a model.

    \b
    Examples:
      glm3 checkpoint inspect glm3_6b.ckpt --tensors
      glm3 checkpoint inspect tiny --json
    """
    from glm3sdk.bootstrap.inspection import inspect_model

    found = inspect_model(fetched(model))
    if as_json:
        click.echo(json.dumps(found.to_json(tensors=tensors), ensure_ascii=False))
        return
    _show(found)
    if tensors:
        for name, spec in found.tensors.items():
            click.echo(f"{_shown(name)}  {list(spec.shape)}  {_shown(spec.dtype)}")


@click.command()
@click.argument("model", metavar="PATH", shell_complete=complete_model_or_file)
@click.option("--finite", is_flag=True, help="Read all tensors too: no NaN, no infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(model: str, finite: bool, as_json: bool) -> None:
    r"""Compare the files at PATH with every digest that is known, and check their structure.

    Digests are looked for in manifest.json, in FILE.sha256 beside a file, in what the SDK knows
    of published models, and in the files themselves. A line for each file says what it was
    compared with. The exit code is 2 where one is damaged. PATH is as for inspect.

    \b
    Example:
      glm3 checkpoint verify /models/chatglm3-6b --finite
    """
    from glm3sdk.bootstrap.inspection import verify_model

    checks, path = [], fetched(model)
    with byte_bars(transient=True) as bar:
        progress = bar and partial(bar, f"verifying {model}")
        for check in verify_model(path, finite=finite, progress=progress):
            checks.append(check)
            if not as_json:
                click.echo(_line(check))
    damaged = [check for check in checks if check.error is not None]
    if as_json:
        values = {"ok": not damaged, "files": [check.to_json() for check in checks]}
        click.echo(json.dumps(values, ensure_ascii=False))
    if damaged:
        more = f" ({len(damaged)} are damaged)" if len(damaged) > 1 else ""
        raise InvalidCheckpointError(f"{damaged[0].error}{more}")


def _show(found: Inspection) -> None:
    click.echo(f"{found.path}: {_FORMATS[found.format]}")
    if found.model is not None:
        _show_model(found.model)
    elif found.adapter is not None:
        targets = ", ".join(found.adapter["targets"])
        click.echo(
            f"adapter     of {_shown(found.base or '')}: rank {found.adapter['rank']}, alpha "
            f"{found.adapter['alpha']:g}, on {_shown(targets)}"
        )
    else:
        click.echo("model       not known: its tensors are not a ChatGLM3's")
    click.echo(f"tensors     {len(found.tensors):,} of {found.elements:,} numbers")
    for dtype, share in found.dtypes.items():
        size = size_text(share.bytes) if share.bytes else "not read"
        click.echo(f"{'':12}{share.tensors:,} {_shown(dtype)}, {size}")
    for number, (name, bytes_) in enumerate(found.files.items()):
        click.echo(f"{'' if number else 'files':12}{_shown(name)}, {size_text(bytes_)}")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


def _show_model(model: ModelFit) -> None:
    config = model.config
    name = " or ".join(model.presets) or "a ChatGLM3 of another size"
    click.echo(
        f"model       {name}: {config.num_layers} layers, hidden {config.hidden_size:,}, "
        f"vocabulary {config.padded_vocab_size:,}, {config.parameter_count:,} parameters"
    )
    for word, names in (
        ("missing", model.missing),
        ("misshapen", model.misshapen),
        ("unknown", model.unknown),
        ("training", model.state),
    ):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            click.echo(f"{word:12}{', '.join(map(_shown, names[:_NAMED]))}{more}")


def _line(check: FileCheck) -> str:
    size = f" ({size_text(check.size)})" if check.size else ""
    detail = check.error or ", ".join(check.compared) or "nothing to compare it with"
    return f"{_WORDS[check.state]:10} {_shown(check.file)}{size}: {_shown(detail)}"


def _shown(text: str) -> str:
    """Text of a file, which must not steer the terminal."""
    return text if text.isprintable() else ascii(text)
