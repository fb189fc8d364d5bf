"""`glm3 checkpoint merge | split | transform`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glm3sdk.cli.completing import complete_model_or_file
from glm3sdk.cli.convert import show_conversion
from glm3sdk.cli.progress import byte_bars, size_text

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.resharding import Progress, ReshardedCheckpoint

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:  # a variable that is not set, and no wish for the current directory
            self.fail("'' is no path; pass one", param, ctx)
        return super().convert(value, param, ctx)


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
@click.argument("source", metavar="SRC", type=_Path())
@click.argument("out", metavar="DST", type=_Path())
@click.option(
    "--strategy",
    required=True,
    type=_Path(),
    metavar="PATH",
    help="The run's strategy file, or the directory of its stages' files.",
)
@click.option(
    "--to",
    type=click.Choice(["hf"]),
    help="Write a directory in Hugging Face layout instead, of the model alone.",
)
@click.option(
    "--config",
    type=_Path(),
    metavar="PATH|PRESET",
    shell_complete=complete_model_or_file,
    help="The model's config.json, for --to hf where SRC has none.",
)
@_check_replicas
@_json
def merge(
    source: str,
    out: str,
    *,
    to: str | None,
    config: str | None,
    strategy: str,
    check_replicas: bool,
    as_json: bool,
) -> None:
    r"""Merge a sharded checkpoint into one file, or into a model's directory.

    SRC holds rank_0, rank_1, ... with one .ckpt or .safetensors file each. DST is the file to
    write, .ckpt or .safetensors, or the directory for --to hf; it must not be there yet.

    \b
    Examples:
      glm3 checkpoint merge shards glm3_6b.ckpt --strategy strategy
      glm3 checkpoint merge shards models/glm3 --strategy strategy --to hf --config glm3-6b
    """
    if to is not None:
        from glm3sdk.bootstrap.conversion import convert

        with byte_bars() as parts:
            report = convert(
                source,
                out,
                to=to,
                config=config,
                strategy=strategy,
                check_replicas=check_replicas,
                progress=parts,
            )
        show_conversion(report, as_json=as_json)
        return
    if config is not None:
        raise click.UsageError("--config is for --to hf: leave it out")
    from glm3sdk.bootstrap.resharding import merge_checkpoint

    with _bar(f"merging {source}") as progress:
        result = merge_checkpoint(
            source, out, strategy=strategy, check_replicas=check_replicas, progress=progress
        )
    _show(result, as_json=as_json)


@click.command()
@click.argument("source", metavar="SRC", type=_Path())
@click.argument("out", metavar="DST", type=_Path())
@click.option(
    "--strategy",
    required=True,
    type=_Path(),
    metavar="PATH",
    help="The strategy file, or directory of files, to split it by.",
)
@click.option(
    "--src-strategy",
    "source_strategy",
    type=_Path(),
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
    r"""Split a checkpoint for the ranks of a strategy, or lay a sharded one out anew.

    SRC is a file of tensors, a model's directory, or a directory of rank_0, rank_1, ... DST
    becomes a directory of rank_N/PREFIXN.ckpt; it must not be there yet.

    \b
    Example:
      glm3 checkpoint split glm3_6b.ckpt shards --strategy strategy.ckpt
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
@click.option(
    "--src_ckpt_strategy",
    type=click.Path(),
    default="",
    metavar="PATH",
    help="Of a sharded source.",
)
@click.option(
    "--dst_ckpt_strategy", type=click.Path(), default="", metavar="PATH", help="To split by."
)
@click.option(
    "--src_ckpt_dir",
    type=_Path(),
    required=True,
    metavar="DIR",
    help="Holds rank_0, rank_1, ...",
)
@click.option(
    "--dst_ckpt_dir", type=_Path(), required=True, metavar="DIR", help="Must not be there yet."
)
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
    r"""Do what MindFormers' transform_ckpt.py does, with its options.

    Without --dst_ckpt_strategy the ranks are merged into DIR/rank_0/PREFIX0.ckpt; without
    --src_ckpt_strategy the one file of rank_0 is split.

    \b
    Example:
      glm3 checkpoint transform --src_ckpt_strategy strategy --src_ckpt_dir run --dst_ckpt_dir whole
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
    with byte_bars() as bar:
        yield bar and partial(bar, what)


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
