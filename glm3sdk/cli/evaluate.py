"""`glm3 evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glm3sdk.cli.completing import complete_config, complete_model, complete_runtime
from glm3sdk.cli.finetune import ConfigMistake
from glm3sdk.cli.loading import RUNTIME_HELP
from glm3sdk.cli.progress import is_terminal
from glm3sdk.errors import InvalidRunConfigError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.evaluation import Evaluation, EvaluationProgress
    from glm3sdk.services.evaluation import EvaluationReport, TextReport
    from glm3sdk.services.prediction import Prediction

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")

_FORMATS = ("adgen", "adgen-chat", "multiturn")
# Options and the keys of a run configuration that they stand for.
_KEYS = {
    "model": "model.path",
    "runtime": "runtime.name",
    "data": "eval_data.path",
    "format": "eval_data.format",
    "columns": "eval_data.columns",
    "max_source_length": "eval_data.max_source_length",
    "max_target_length": "eval_data.max_target_length",
    "max_seq_length": "eval_data.max_seq_length",
    "max_records": "evaluation.max_records",
    "max_new_tokens": "generation.max_new_tokens",
    "tool_choice": "generation.tool_choice",
}
_BATCH_SIZE = 8
# A log gets no more of them for each thing that is counted.
_LINES = 20


def config_options(command: _Command) -> _Command:
    """Add the options that name a run configuration: `config` and `overrides`."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a value of the configuration, such as model.path=tiny; repeatable.",
        ),
        click.option(
            "--config",
            metavar="CONFIG",
            shell_complete=complete_config,
            help="A YAML file, ours or MindFormers', or a preset such as predict.",
        ),
    ):
        command = option(command)
    return command


def from_config(
    load: Callable[..., _Value],
    config: str | None,
    overrides: tuple[str, ...],
    *,
    given: Mapping[str, Any],
    otherwise: Mapping[str, Any],
    options: Mapping[str, str],
) -> _Value:
    """Load from a configuration that options change, or from the options alone.

    Args:
        load: takes a configuration and overrides.
        config: what to read; None where there is none.
        overrides: `--set`; they come last.
        given: values of the options, by dotted key.
        otherwise: values where there is no configuration.
        options: what problems are called by then, by dotted key.
    """
    try:
        if config is not None:
            changes = (f"{key}={json.dumps(value)}" for key, value in given.items())
            return load(config, overrides=(*changes, *overrides))
        if overrides:
            raise click.UsageError("--set changes a configuration: pass one with --config")
        tree: dict[str, Any] = {}
        for key, value in {**otherwise, **given}.items():
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
        return load(tree)
    except InvalidRunConfigError as exc:
        problems = exc.problems
        if config is None:
            named = (each._replace(key=options.get(each.key, each.key)) for each in problems)
            problems = tuple(dict.fromkeys(named))  # an option may set two keys
        raise ConfigMistake(InvalidRunConfigError(problems)) from exc


@click.command()
@config_options
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=complete_model,
    help="A directory in Hugging Face layout, a name (tiny, glm3-6b), or a URI to fetch.  "
    "[default: tiny]",
)
@click.option("--runtime", metavar="NAME", shell_complete=complete_runtime, help=RUNTIME_HELP)
@click.option("--data", type=click.Path(), metavar="FILE", help="A JSON Lines file.")
@click.option("--format", type=click.Choice(_FORMATS), help="[default: multiturn]")
@click.option("--columns", nargs=2, metavar="SOURCE TARGET", help="Keys of the adgen formats.")
@click.option("--max-source-length", type=click.IntRange(max=2**20), metavar="S", help="For adgen.")
@click.option("--max-target-length", type=click.IntRange(max=2**20), metavar="T", help="For adgen.")
@click.option(
    "--max-seq-length", type=click.IntRange(max=2**20), metavar="N", help="For the other formats."
)
@click.option("--max-records", type=int, metavar="N", help="Use the first N records alone.")
@click.option(
    "--max-new-tokens", type=int, metavar="N", help="Most tokens of a reply.  [default: 512]"
)
@click.option(
    "--tool-choice",
    metavar="CHOICE",
    help="auto, none, required or a tool's name; a call is required where the data has one.",
)
@click.option(
    "--against",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Compare logits with those of another model: mean KL divergence, top-1 agreement.",
)
@click.option(
    "--against-runtime",
    metavar="NAME",
    shell_complete=complete_runtime,
    help="What runs that one.",
)
@click.option(
    "--predictions",
    type=click.Path(),
    metavar="OUT.jsonl",
    help="Write prompt, reference and prediction of every turn there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def evaluate(
    *,
    config: str | None,
    overrides: tuple[str, ...],
    against: str | None,
    against_runtime: str | None,
    predictions: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Score a model on a data file: BLEU-4, ROUGE, tool calls and perplexity.

    Every assistant turn that is trained is predicted from the turns that precede it in the
    file. Options stand above CONFIG, and --set above them.

    \b
    Examples:
      glm3 evaluate --data dev.jsonl --model runs/first --max-seq-length 256
      glm3 evaluate --config run.yaml --predictions out.jsonl --json
    """
    from glm3sdk.bootstrap.evaluation import load_evaluation

    if config is None and options["data"] is None:
        raise click.UsageError("nothing to evaluate on: pass --config, or --data FILE")
    if against_runtime is not None and against is None:
        raise click.UsageError("--against-runtime runs another model: name it with --against")
    given = {_KEYS[name]: value for name, value in options.items() if value is not None}
    evaluation = from_config(
        load_evaluation,
        config,
        overrides,
        given=given,
        otherwise={
            "mode": "evaluate",
            "training.batch_size": _BATCH_SIZE,
            "generation.batch_size": _BATCH_SIZE,
        },
        options={key: f"--{name.replace('_', '-')}" for name, key in _KEYS.items()},
    )
    _show_data(evaluation)
    written = nullcontext(_ignore) if predictions is None else _predictions(Path(predictions))
    with written as write, _progress() as progress:
        report = evaluation.run(progress=progress, on_prediction=write)
        agreement = None
        if against is not None:
            agreement = evaluation.compare(against, runtime=against_runtime, progress=progress)
    if as_json:
        values = _report_json(evaluation, report)
        if agreement is not None:
            values["against"] = {"model": against, **agreement.to_json()}
        click.echo(json.dumps(values, ensure_ascii=False))
    else:
        _show(report)
        if agreement is not None:
            margin = f" (margin elsewhere up to {agreement.margin:.3g})" if agreement.margin else ""
            click.echo(
                f"against {against}: mean KL divergence {agreement.mean_kl:.3g}, the same token "
                f"likeliest {agreement.top_1:.2%}{margin}, perplexity "
                f"{agreement.perplexity_change:+.2%} over {agreement.tokens} tokens"
            )
    if predictions is not None:
        click.echo(f"predictions: {predictions}", err=True)


def _ignore(_: Prediction) -> None:
    return None


@contextmanager
def _predictions(path: Path) -> Iterator[Callable[[Prediction], None]]:
    from glm3sdk.adapters.storage.whole_file import whole_file

    with whole_file(path) as file:

        def write(prediction: Prediction) -> None:
            line = json.dumps(prediction.to_json(), ensure_ascii=False)
            file.write(line.encode() + b"\n")

        yield write


@contextmanager
def _progress() -> Iterator[Callable[[EvaluationProgress], None]]:
    """Tell on standard error how far it is: a bar on a terminal, elsewhere lines."""
    with counter() as count:
        words = {
            "predict": "turns predicted",
            "loss": "sequences measured",
            "compare": "sequences compared",
        }
        yield lambda at: count(at.done, at.total, words[at.stage])


@contextmanager
def counter() -> Iterator[Callable[[int, int, str], None]]:
    """Count something on standard error: a bar on a terminal, elsewhere lines.

    Yields:
        A function of how many are done, how many there are, and what they are.
    """
    if not is_terminal():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars: dict[str, Any] = {}
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as shown:

        def count(done: int, total: int, what: str) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done)

        yield count


def _lines() -> Callable[[int, int, str], None]:
    told: dict[str, int] = {}

    def count(done: int, total: int, what: str) -> None:
        share = done * _LINES // total
        if (done and share > told.get(what, 0)) or done == total:
            told[what] = share
            click.echo(f"{done}/{total} {what}", err=True)

    return count


def _show_data(evaluation: Evaluation) -> None:
    data = evaluation.data
    dropped = sum(group.count for group in data.dropped)
    left_out = f", {evaluation.left_out} more leave no room for a reply"
    click.echo(
        f"{data.name}: {data.taken} records taken, {dropped} dropped; {evaluation.turns} turns "
        f"to predict{left_out if evaluation.left_out else ''}",
        err=True,
    )


def _report_json(evaluation: Evaluation, report: EvaluationReport) -> dict[str, Any]:
    return {
        "model": evaluation.config.model.path,
        "data": evaluation.data.name,
        "records": evaluation.data.taken,
        "dropped": sum(group.count for group in evaluation.data.dropped),
        **report.to_json(),
    }


def _show(report: EvaluationReport) -> None:
    if report.text is not None:
        _show_text(report.text)
    if report.tools is not None:
        tools, turns = report.tools, report.tools.turns
        click.echo(
            f"tool calls: {turns} expected, {tools.called} made"
            f"{f', {tools.malformed} more that cannot be read' if tools.malformed else ''}; "
            "name exact match "
            f"{tools.right_name / turns:.1%}, name and arguments {tools.right_call / turns:.1%}"
        )
    if report.loss is not None:
        loss = report.loss
        click.echo(
            f"perplexity {loss.perplexity:.4g} (loss {loss.loss:.4f} over {loss.tokens} tokens)"
        )


def _show_text(text: TextReport) -> None:
    from rich.console import Console
    from rich.table import Table

    blank = f", {text.blank} of them left blank" if text.blank else ""
    click.echo(f"text of {text.turns} turns{blank}")
    table = Table()
    table.add_column("")
    flavours = (text.mindformers, text.official)
    for name in ("MindFormers", "official"):
        table.add_column(name, justify="right")
    for score in ("rouge-1", "rouge-2", "rouge-l", "bleu-4"):
        values = (flavour and flavour.to_json()[score] for flavour in flavours)
        table.add_row(
            score.upper(), *("-" if value is None else f"{value:.4f}" for value in values)
        )
    Console().print(table)
