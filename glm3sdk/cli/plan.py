"""`glm3 plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.finetune import ConfigMistake, config_arguments
from glm3sdk.errors import InvalidRunConfigError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.services.planning import RunPlan

_GIB = 2**30


@click.command()
@config_arguments
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Cards that there are.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in bytes.")
def plan(config: str, overrides: tuple[str, ...], devices: int | None, as_json: bool) -> None:
    """Tell the memory of a card and the steps of the finetune run CONFIG, and start nothing.

    The model's weights need not be there: --set model.path=glm3-6b plans for ChatGLM3-6B.
    """
    from glm3sdk.bootstrap.planning import load_plan

    try:
        planned = load_plan(config, overrides=overrides, devices=devices)
    except InvalidRunConfigError as exc:
        raise ConfigMistake(exc) from exc
    if as_json:
        click.echo(json.dumps(planned.to_json(), ensure_ascii=False))
    else:
        _show(planned)


def _show(planned: RunPlan) -> None:
    load = planned.load
    click.echo(
        f"{planned.parameters:,} parameters, of which {planned.trained:,} are trained, "
        f"in {load.dtype}"
    )
    shard = ", optimizer sharded" if load.optimizer_shard else ""
    click.echo(
        f"{planned.devices} device{'s' * (planned.devices > 1)}: "
        f"data {load.data} x tensor {load.tensor}{shard}"
    )
    _show_memory(planned)
    steps = "unknown" if planned.steps is None else f"{planned.steps:,}"
    records = "unknown" if planned.records is None else f"{planned.records:,}"
    click.echo(
        f"sequences {records}, epochs {planned.epochs:g}, steps {steps}, "
        f"tokens a step {planned.tokens_per_step:,}"
    )
    for note in planned.notes:
        click.echo(f"note: {note}", err=True)
    for warning in planned.warnings():
        click.echo(f"warning: {warning}", err=True)


def _show_memory(planned: RunPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    memory, off, on = planned.memory, not planned.recompute, planned.recompute
    table = Table(title="GiB of each card")
    table.add_column("")
    for words, chosen in (("all kept", off), ("recomputed", on)):
        table.add_column(f"{words}{' (this run)' * chosen}", justify="right")
    for name, kept, recomputed in (
        ("weights", memory.weights, memory.weights),
        ("gradients", memory.gradients, memory.gradients),
        ("optimizer", memory.optimizer, memory.optimizer),
        ("activations", memory.activations, memory.recomputed_activations),
        ("logits", memory.logits, memory.logits),
    ):
        table.add_row(name, _gib(kept), _gib(recomputed))
    table.add_section()
    totals = (memory.total(recompute=recompute) for recompute in (False, True))
    table.add_row("total", *map(_gib, totals))
    Console().print(table)


def _gib(size: int) -> str:
    return f"{size / _GIB:,.3f}" if size < _GIB else f"{size / _GIB:,.1f}"
