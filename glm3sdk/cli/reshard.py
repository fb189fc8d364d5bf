"""`glm3 checkpoint merge | split | transform`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glm3sdk.cli.fetching import size_text

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.resharding import Progress, ReshardedCheckpoint

_Command = TypeVar("_Command", bound=Callable[..., Any])

_check_replicas = click.option(
    "--check-replicas",
    is_flag=True,
    help="Compare what ranks hold twice, which reads every file.  [default: the lowest rank's]",
)
_prefix = click.option(
    "--prefix", default="checkpoint_", show_default=True, help="What the files' names begin with."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("out", metavar="DST", type=click.Path())
@click.option(
    "--strategy",
    required=True,
    type=click.Path(),
    metavar="PATH",
    help="The run's strategy file, or the directory of its stages' files.",
)
@_check_replicas
@_json
def merge(source: str, out: str, *, as_json: bool, **options: Any) -> None:
    """Merge a sharded checkpoint into one file.

    SRC holds rank_0, rank_1, ... with one .ckpt or .safetensors file each. DST is the file to
    write, .ckpt or .safetensors; it must not be there yet. Convert it with `glm3 convert`.
    """
    from glm3sdk.bootstrap.resharding import merge_checkpoint

    with _bar(f"merging {source}") as progress:
        result = merge_checkpoint(source, out, progress=progress, **options)
    _show(result, as_json=as_json)


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("out", metavar="DST", type=click.Path())
@click.option(
    "--strategy",
    required=True,
    type=click.Path(),
    metavar="PATH",
    help="The strategy file, or directory of files, to split it by.",
)
@click.option(
    "--src-strategy",
    "source_strategy",
    type=click.Path(),
    metavar="PATH",
    help="The strategy of the run that wrote a sharded SRC.",
)
@_prefix
@click.option(
    "--format",
    type=click.Choice(["ckpt", "safetensors"]),
    default="ckpt",
    show_default=True,
    help="What to write.",
)
@_check_replicas
@_json
def split(
    source: str, out: str, *, as_json: bool, source_strategy: str | None, **options: Any
) -> None:
    """Split a checkpoint for the ranks of a strategy, or lay a sharded one out anew.

    SRC is a file of tensors, a model's directory, or a directory of rank_0, rank_1, ... DST
    becomes a directory of rank_N/PREFIXN.ckpt; it must not be there yet.
    """
    from glm3sdk.bootstrap.resharding import split_checkpoint

    if options["check_replicas"] and source_strategy is None:
        raise click.UsageError("--check-replicas is for a sharded SRC; pass --src-strategy too")
    with _bar(f"splitting {source}") as progress:
        result = split_checkpoint(
            source, out, source_strategy=source_strategy, progress=progress, **options
        )
    _show(result, as_json=as_json)


@click.command()
@click.option("--src_ckpt_strategy", default="", metavar="PATH", help="Of a sharded source.")
@click.option("--dst_ckpt_strategy", default="", metavar="PATH", help="To split by.")
@click.option("--src_ckpt_dir", required=True, metavar="DIR", help="Holds rank_0, rank_1, ...")
@click.option("--dst_ckpt_dir", required=True, metavar="DIR", help="Must not be there yet.")
@_prefix
@_json
def transform(
    *,
    src_ckpt_strategy: str,
    dst_ckpt_strategy: str,
    src_ckpt_dir: str,
    dst_ckpt_dir: str,
    prefix: str,
    as_json: bool,
) -> None:
    """Do what MindFormers' transform_ckpt.py does, with its options.

    Without --dst_ckpt_strategy the ranks are merged into DIR/rank_0/PREFIX0.ckpt; without
    --src_ckpt_strategy the one file of rank_0 is split.
    """
    from glm3sdk.bootstrap.resharding import split_checkpoint

    with _bar(f"transforming {src_ckpt_dir}") as progress:
        result = split_checkpoint(
            src_ckpt_dir,
            dst_ckpt_dir,
            strategy=_given(dst_ckpt_strategy),
            source_strategy=_given(src_ckpt_strategy),
            prefix=prefix,
            progress=progress,
        )
    _show(result, as_json=as_json)


def _given(strategy: str) -> str | None:
    # The reference's scripts pass the word for no strategy.
    return None if strategy in ("", "None") else strategy


@contextmanager
def _bar(what: str) -> Iterator[Progress | None]:
    """A bar of bytes, speed and time left; None where standard error is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task(what, total=None)
    try:
        bar.start()
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        bar.stop()


def _show(result: ReshardedCheckpoint, *, as_json: bool) -> None:
    size = sum(file.size for file in result.files)
    if as_json:
        content = {
            "path": str(result.path),
            "source_ranks": result.source_ranks,
            "ranks": len(result.files),
            "bytes": size,
            "left_out": list(result.left_out),
            "files": [
                {
                    "path": str(file.path),
                    "tensors": file.tensors,
                    "size": file.size,
                    "sha256": file.sha256,
                }
                for file in result.files
            ],
        }
        click.echo(json.dumps(content, ensure_ascii=False))
        return
    sources, ranks = result.source_ranks, len(result.files)
    tensors = max(file.tensors for file in result.files)
    read, wrote = (f"{n} file{'' if n == 1 else 's'}" for n in (sources, ranks))
    amount = f"{tensors} tensors, {size_text(size)}"
    click.echo(f"read {read}, wrote {wrote} ({amount}) to {result.path}")
    if result.left_out:
        click.echo(f"left out, no tensors of numbers: {', '.join(result.left_out)}", err=True)
