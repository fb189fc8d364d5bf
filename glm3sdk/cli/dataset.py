"""`glm3 dataset inspect | encode | format-tool-alpaca`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glm3sdk.cli.completing import complete_model_or_file
from glm3sdk.cli.failures import ReportingGroup
from glm3sdk.cli.input import read_json
from glm3sdk.cli.loading import Loaders
from glm3sdk.errors import UserError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.config.schema import DataSettings
    from glm3sdk.ports.arrays import IntArray
    from glm3sdk.services.datasets import Dataset
    from glm3sdk.services.preflight import DatasetReport
    from glm3sdk.services.tool_alpaca import FormatReport

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FORMATS = ("adgen", "adgen-chat", "multiturn")
_ROWS_AT_ONCE = 256


@click.group(cls=ReportingGroup)
def dataset() -> None:
    """Look at training data, encode it, and convert ToolAlpaca's."""


def _file_options(command: _Command) -> _Command:
    for option in (
        click.option(
            "--max-seq-length",
            type=click.IntRange(1, 2**20),
            metavar="N",
            help="Tokens of a record, for the formats of conversations.",
        ),
        click.option(
            "--max-target-length",
            type=click.IntRange(1, 2**20),
            metavar="T",
            help="Tokens of the target, for adgen.",
        ),
        click.option(
            "--max-source-length",
            type=click.IntRange(1, 2**20),
            metavar="S",
            help="Tokens of the source, for adgen.",
        ),
        click.option(
            "--columns",
            nargs=2,
            default=("content", "summary"),
            show_default=True,
            metavar="SOURCE TARGET",
            help="Keys of the adgen formats.",
        ),
        click.option(
            "--tokenizer",
            "tokenizer_path",
            required=True,
            metavar="PATH",
            shell_complete=complete_model_or_file,
            help="A tokenizer.model, a directory that holds one, or the bundled model's name.",
        ),
        click.option(
            "--format",
            "layout",
            required=True,
            type=click.Choice(_FORMATS),
            help="What a line of the file holds.",
        ),
        click.argument("file", type=click.Path()),
    ):
        command = option(command)
    return command


def _output(metavar: str) -> Callable[[_Command], _Command]:
    return click.option(
        "-o",
        "--output",
        "--out",
        "output",
        required=True,
        type=click.Path(),
        metavar=metavar,
        help="The file to write.",
    )


@dataset.command()
@_file_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.make_pass_decorator(Loaders, ensure=True)
def inspect(
    loaders: Loaders, /, *, file: str, tokenizer_path: str, as_json: bool, **options: Any
) -> None:
    r"""Report a data file's records, what is dropped and why, and the lengths in tokens.

    With lengths (--max-source-length and --max-target-length for adgen, else
    --max-seq-length) it tells what would be cut, and which records would teach nothing.

    \b
    Example:
      glm3 dataset inspect train.jsonl --format multiturn --tokenizer tiny
    """
    from glm3sdk.adapters.storage.jsonl import JsonLinesFile
    from glm3sdk.services.preflight import inspect_dataset
    from glm3sdk.services.record_layout import RecordLayout, training_layout

    settings = _settings(file, **options)
    lengths = settings.max_source_length, settings.max_target_length, settings.max_seq_length
    if any(length is not None for length in lengths):
        layout = training_layout(settings)
    else:
        layout = RecordLayout(format=settings.format, columns=settings.columns)
    source = JsonLinesFile(Path(file))
    report = inspect_dataset(source, layout, loaders.tokenizer(tokenizer_path))
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _show(report)
    report.require_records()


@dataset.command()
@_file_options
@_output("FILE.npz")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.make_pass_decorator(Loaders, ensure=True)
def encode(
    loaders: Loaders,
    /,
    *,
    file: str,
    tokenizer_path: str,
    output: str,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Write a data file's input_ids and labels: int32 [records, seq_length], right padded.

    labels[i] is the token that follows input_ids[i], or -100 where nothing is learned.

    \b
    Example:
      glm3 dataset encode train.jsonl --format multiturn --tokenizer tiny \
        --max-seq-length 256 -o train.npz
    """
    from glm3sdk.adapters.storage.jsonl import JsonLinesFile
    from glm3sdk.adapters.storage.npz import write_npz
    from glm3sdk.adapters.storage.whole_file import whole_file
    from glm3sdk.services.datasets import open_dataset

    settings = _settings(file, **options)
    source = JsonLinesFile(Path(file))
    tokenizer = loaders.tokenizer(tokenizer_path)
    encoded = open_dataset(source, settings, tokenizer, keep_masked=True)
    shape = (len(encoded), encoded.seq_length)
    arrays = {name: _rows(encoded, name) for name in ("input_ids", "labels")}
    with whole_file(Path(output)) as target:
        write_npz(target, arrays, shape=shape)
    if as_json:
        values = {"output": output, "shape": list(shape), **encoded.report.to_json()}
        click.echo(json.dumps(values, ensure_ascii=False))
        return
    _show(encoded.report)
    click.echo(f"wrote {shape[0]} x {shape[1]} input_ids and labels to {output}")


@dataset.command("format-tool-alpaca")
@click.argument("file", type=click.Path())
@_output("FILE.jsonl")
@click.option(
    "--tokenizer",
    "tokenizer_path",
    metavar="PATH",
    shell_complete=complete_model_or_file,
    help="Report lengths in its tokens.  [default: in characters]",
)
@click.make_pass_decorator(Loaders, ensure=True)
def format_tool_alpaca(
    loaders: Loaders, /, *, file: str, output: str, tokenizer_path: str | None
) -> None:
    r"""Turn ToolAlpaca's published JSON into conversations for --format multiturn.

    \b
    Example:
      glm3 dataset format-tool-alpaca train_data.json -o train.jsonl
    """
    from glm3sdk.adapters.storage.whole_file import whole_file
    from glm3sdk.domain.dataset import Conversation, parse_conversation
    from glm3sdk.services.examples import encode_training
    from glm3sdk.services.preflight import LengthSummary
    from glm3sdk.services.tool_alpaca import FormatTally
    from glm3sdk.services.tool_alpaca import format_tool_alpaca as formatted

    tools = read_json(file)
    if not isinstance(tools, list):
        raise UserError(f"{file}: expected ToolAlpaca's JSON list of tools")
    tokenizer = None if tokenizer_path is None else loaders.tokenizer(tokenizer_path)
    tally, lengths = FormatTally(), []
    with whole_file(Path(output)) as target:
        for conversation in tally.taken(formatted(tools)):
            target.write(conversation.line + b"\n")
            if tokenizer is None:
                lengths.append(len(conversation.line.decode("utf-8")))
                continue
            parsed = parse_conversation(conversation.line, line=0)
            if isinstance(parsed, Conversation):
                lengths.append(len(encode_training(parsed, tokenizer)))
        if not lengths:
            reasons = "; ".join(map(str, tally.report().dropped[:3])) or "the list is empty"
            raise UserError(f"{file} holds no instance that can be used: {reasons}")
    _show_formatted(file, tally.report())
    unit = "characters" if tokenizer is None else "tokens"
    click.echo(f"{unit} of a conversation: {LengthSummary.of(lengths)}")
    click.echo(f"wrote {len(lengths)} conversations to {output}")


def _settings(
    file: str,
    *,
    layout: str,
    columns: tuple[str, str],
    max_source_length: int | None,
    max_target_length: int | None,
    max_seq_length: int | None,
) -> DataSettings:
    from glm3sdk.config.schema import DataFormat, DataSettings

    if layout == DataFormat.ADGEN and max_seq_length is not None:
        raise click.UsageError(
            "adgen takes --max-source-length and --max-target-length, not --max-seq-length"
        )
    if layout != DataFormat.ADGEN and (max_source_length or max_target_length):
        raise click.UsageError(
            f"{layout} takes --max-seq-length, not --max-source-length or --max-target-length"
        )
    return DataSettings(
        path=file,
        format=DataFormat(layout),
        columns=columns,
        max_source_length=max_source_length,
        max_target_length=max_target_length,
        max_seq_length=max_seq_length,
    )


def _rows(encoded: Dataset, name: str) -> Iterator[IntArray]:
    for first in range(0, len(encoded), _ROWS_AT_ONCE):
        batch = encoded.batch(range(first, min(first + _ROWS_AT_ONCE, len(encoded))))
        rows: IntArray = getattr(batch, name)
        yield rows


def _show(report: DatasetReport) -> None:
    dropped = sum(group.count for group in report.dropped)
    click.echo(f"{report.name}: {report.taken} records taken, {dropped} dropped")
    for group in report.dropped:
        click.echo(f"  dropped {group.count}: {group.kind}")
    click.echo(f"tokens of a record: {report.lengths}")
    click.echo(f"tokens in all: {report.tokens}, of which {report.trained_tokens} are trained")
    if report.seq_length is not None:
        share = report.truncated / report.taken if report.taken else 0.0
        click.echo(f"seq_length {report.seq_length}: {report.truncated} records cut ({share:.1%})")
    click.echo(f"records of which no token is trained: {report.masked}")
    for problem in report.problems():
        click.echo(problem, err=True)


def _show_formatted(file: str, report: FormatReport) -> None:
    click.echo(f"{file}: {report.taken} conversations taken, {len(report.dropped)} dropped")
    for dropped in report.dropped:
        click.echo(f"  dropped {dropped}")
    turns = ", ".join(f"{turns} x {count}" for turns, count in report.turns.items())
    click.echo(f"turns x conversations: {turns}")
