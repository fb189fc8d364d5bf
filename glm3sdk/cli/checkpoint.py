"""`glm3 checkpoint`: merge-lora here, the others where they belong."""

from __future__ import annotations

import json
import shlex

import click

from glm3sdk.cli.failures import ReportingGroup
from glm3sdk.cli.inspect import inspect, verify
from glm3sdk.cli.reshard import merge, split, transform


@click.group(cls=ReportingGroup)
def checkpoint() -> None:
    """Work on stored models."""


@checkpoint.command("merge-lora")
@click.argument("adapter", type=click.Path())
@click.argument("out", metavar="DST", type=click.Path())
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="What to store weights in.  [default: the base model's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge_lora(adapter: str, out: str, dtype: str | None, as_json: bool) -> None:
    r"""Merge a LoRA adapter into its base model and write DST, in Hugging Face layout.

    ADAPTER is the directory of a LoRA run, or of an adapter (adapter_config.json and
    adapter_model.safetensors). DST must not be there yet.

    \b
    Example:
      glm3 checkpoint merge-lora runs/lora models/merged --dtype float16
    """
    from glm3sdk.bootstrap.merging import merge_lora as merged

    model = merged(adapter, out, dtype=dtype)
    if as_json:
        values = {"path": str(model.path), "tensors": model.tensors, "dtype": model.dtype}
        click.echo(json.dumps(values, ensure_ascii=False))
        return
    click.echo(f"wrote {model.tensors} tensors, {model.dtype}, to {model.path}")
    click.echo(f"chat with it: {shlex.join(['glm3', 'chat', '--model', out])}")


for _command in (inspect, verify, merge, split, transform):
    checkpoint.add_command(_command)
