"""`glm3 plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.finetune import ConfigMistake, config_arguments
from glm3sdk.errors import InvalidRunConfigError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from rich.table import Table

    from glm3sdk.services.run_plan import RunPlan

_GIB = 2**30


@click.command()
@config_arguments
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Cards that there are.")
@click.option(
    "--nproc", type=click.IntRange(min=1), metavar="N", help="Cards of a server.  [default: 8]"
)
@click.option(
    "--rank-table",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="HCCL rank table; tells both.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in bytes.")
def plan(
    *,
    config: str,
    overrides: tuple[str, ...],
    devices: int | None,
    nproc: int | None,
    rank_table: Path | None,
    as_json: bool,
) -> None:
    r"""Tell what the finetune run CONFIG takes, and start nothing.

    Memory and shards of a card, what it sends to others in a step, and the steps. The model's
    weights need not be there: --set model.path=glm3-6b plans for ChatGLM3-6B.

    \b
    Example:
      glm3 plan finetune_2k --set model.path=glm3-6b --devices 8 --json
    """
    from glm3sdk.bootstrap.planning import load_plan

    try:
        planned = load_plan(
            config, overrides=overrides, devices=devices, nproc=nproc, rank_table=rank_table
        )
    except InvalidRunConfigError as exc:
        raise ConfigMistake(exc) from exc
    if as_json:
        click.echo(json.dumps(planned.to_json(), ensure_ascii=False))
    else:
        _show(planned)


def _show(planned: RunPlan) -> None:
    from rich.console import Console

    load, console = planned.load, Console()
    click.echo(
        f"{planned.parameters:,} parameters, of which {planned.trained:,} are trained, "
        f"in {load.dtype}"
    )
    shard = ", optimizer sharded" if load.optimizer_shard else ""
    click.echo(
        f"{planned.devices:,} device{'s' * (planned.devices > 1)}: "
        f"data {load.data} x tensor {load.tensor}{shard}"
    )
    if planned.devices > 1:
        _show_ranks(planned)
        console.print(_parts(planned))
    console.print(_memory(planned))
    if planned.devices > 1:
        console.print(_communication(planned))
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


def _show_ranks(planned: RunPlan) -> None:
    """Which ranks work together: the first group of each kind, and how many there are."""
    data, tensor = planned.load.data, planned.load.tensor
    if tensor > 1:
        click.echo(f"share each layer: ranks {_ranks(tensor, 1)}{_and_so_on(data)}")
    if planned.copies > 1:
        click.echo(
            f"hold the same key/value group: ranks {_ranks(planned.copies, 1)}"
            f"{_and_so_on(planned.devices // planned.copies)}"
        )
    if data > 1:
        click.echo(f"train on other data: ranks {_ranks(data, tensor)}{_and_so_on(tensor)}")


def _ranks(number: int, distance: int) -> str:
    if distance == 1 and number > 2:
        return f"0-{number - 1}"
    ranks = [str(rank * distance) for rank in range(min(number, 3))]
    if number > 3:
        ranks += ["..."] * (number > 4) + [str((number - 1) * distance)]
    return ", ".join(ranks)


def _and_so_on(groups: int) -> str:
    return f"; {groups:,} such groups" if groups > 1 else ""


def _parts(planned: RunPlan) -> Table:
    table = _table("Each card's part", "tensor", "whole", "a card", "a moment")
    for part in planned.parts:
        state = "" if part.state is None else _shape(part.state)
        times = f" ({part.tensors})" if part.tensors > 1 else ""
        table.add_row(_short(part.name) + times, _shape(part.shape), _shape(part.card), state)
    return table


def _short(name: str) -> str:
    """A tensor's name without the names of what it is in."""
    inner = {"bias", "lora_A", "lora_B"}
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] in inner else parts[-1:])


def _memory(planned: RunPlan) -> Table:
    memory, off, on = planned.memory, not planned.recompute, planned.recompute
    columns = (
        f"{words}{' (this run)' * chosen}"
        for words, chosen in (("all kept", off), ("recomputed", on))
    )
    table = _table("GiB of each card", "", *columns)
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
    return table


def _communication(planned: RunPlan) -> Table:
    title = f"GiB that each card sends in a step; {planned.nproc} cards on a server"
    table = _table(title, "", "times", "sent", "between servers")
    found: dict[tuple[str, int, int], list[int]] = {}
    for each, times in planned.collectives.items():
        sums = found.setdefault((each.kind, each.ranks, each.stride), [0, 0, 0])
        sent, between = each.sent, each.between_servers(planned.nproc)
        for index, number in enumerate((1, sent, between)):
            sums[index] += number * times
    for (kind, number, distance), (times, sent, between) in found.items():
        name = f"{kind} over ranks {_ranks(number, distance)}"
        table.add_row(name, f"{times:,}", _gib(sent), _gib(between))
    table.add_section()
    table.add_row("total", "", _gib(planned.sent), _gib(planned.sent_between_servers))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _gib(size: int) -> str:
    return f"{size / _GIB:,.3f}" if size < _GIB else f"{size / _GIB:,.1f}"
