"""`glm3 convert`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from glm3sdk.cli.completing import complete_model_or_file
from glm3sdk.cli.fetching import fetched
from glm3sdk.cli.progress import byte_bars, size_text

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.services.conversion import ConversionReport

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class _Size(click.ParamType[int]):
    """An amount of bytes such as 2GB, 500MB or 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        match = _SIZE.fullmatch(str(value).strip())
        if not match or (size := _bytes(match)) < 1:
            self.fail(f"{value!r} is not an amount such as 2GB, 500MB or 2GiB", param, ctx)
        return size


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(), shell_complete=complete_model_or_file)
@click.argument("destination", metavar="DST", type=click.Path())
@click.option(
    "--to",
    required=True,
    type=click.Choice(["hf", "safetensors", "mindspore", "mindspore-safetensors", "openvino"]),
    help="A directory in Hugging Face layout, one file with MindFormers' names, or a directory "
    "for the runtime openvino.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int4", "none"]),
    help="Bits of a weight, for openvino.  [default: int8]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="What to store weights in.  [default: what they are]",
)
@click.option(
    "--config",
    type=click.Path(),
    metavar="PATH|PRESET",
    shell_complete=complete_model_or_file,
    help="The model's config.json, for weights that have none beside them.",
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    type=_Size(),
    metavar="SIZE",
    help="Of a safetensors file of a directory.  [default: 2GB]",
)
@click.option("--no-verify", is_flag=True, help="Compare neither the source nor what was written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: str, destination: str, *, to: str, no_verify: bool, as_json: bool, **options: Any
) -> None:
    r"""Write a model in another format: Hugging Face's, MindSpore's or OpenVINO's.

    SRC is a model's directory (safetensors, or the .bin files that torch saved, which are read
    without torch), a finetune run, a LoRA adapter (merged with its base), a .ckpt, .safetensors
    or .bin file, a published name or a URI. DST must not be there yet: a directory or a URI for
    hf (safetensors is another word for it) and openvino, a .ckpt file for mindspore, a
    .safetensors file for mindspore-safetensors. Files of SRC whose sha256 is known are compared
    with it first, and everything that is written is read back.

    \b
    Examples:
      glm3 convert /models/chatglm3-6b glm3_6b.ckpt --to mindspore
      glm3 convert glm3_6b.ckpt models/glm3 --to hf --config glm3-6b --dtype float16
      glm3 convert glm3-6b models/glm3-int4 --to openvino --quantize int4
    """
    given = {name: value for name, value in options.items() if value is not None}
    converted = _conversion(to, given)
    source = fetched(source)
    with byte_bars() as progress:
        report = converted(source, destination, verify=not no_verify, progress=progress, **given)
    show_conversion(report, as_json=as_json)


def _conversion(to: str, given: Mapping[str, Any]) -> Callable[..., ConversionReport]:
    """What converts to a format, when every option that was given is one of its own."""
    own = {"quantize", "config"} if to == "openvino" else {"dtype", "config", "max_shard_bytes"}
    for name in sorted(given.keys() - own):
        option = "max-shard-size" if name == "max_shard_bytes" else name
        raise click.UsageError(f"--{option} means nothing for --to {to}: leave it out")
    if to == "openvino":
        from glm3sdk.bootstrap.openvino import convert_to_openvino

        return convert_to_openvino
    from glm3sdk.bootstrap.conversion import convert as converted

    return partial(converted, to=to)


def _bytes(match: re.Match[str]) -> int:
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _UNITS[match[2].upper()])


def show_conversion(report: ConversionReport, *, as_json: bool) -> None:
    """Tell what was written."""
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False))
        return
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in report.dtypes.items())
    click.echo(
        f"wrote {report.tensors} tensors ({dtypes}; {size_text(report.bytes)}) to "
        f"{report.destination} in {report.seconds:.1f} s"
    )
    if report.verified:
        click.echo("read back: names, shapes, dtypes and sha256 are right")
    for file in report.files:
        click.echo(f"  {file.sha256}  {file.name}")
    click.echo(f"model: {report.model}", err=True)
    if report.training_state:
        click.echo(f"left out: {report.training_state} tensors of a training run's state", err=True)
    if report.unknown:
        click.echo(f"left out, no part of the model: {', '.join(report.unknown)}", err=True)
    if report.format not in ("hf", "openvino"):
        return
    if any(file.name == "tokenizer.model" for file in report.files):
        click.echo(f"chat with it: {shlex.join(['glm3', 'chat', '--model', report.destination])}")
    else:
        click.echo("the source has no tokenizer.model; put it there to chat", err=True)
