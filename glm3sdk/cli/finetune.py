"""`glm3 finetune`."""

from __future__ import annotations

import json
import logging
import math
import queue
import shlex
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from glm3sdk.cli.completing import complete_config
from glm3sdk.cli.interrupts import INTERRUPTED
from glm3sdk.cli.progress import is_terminal
from glm3sdk.errors import InvalidRunConfigError

if TYPE_CHECKING:  # they import numpy, and `glm3 --help` is to be quick
    from types import TracebackType

    from glm3sdk.bootstrap.finetune import Finetune
    from glm3sdk.services.finetune import FinetuneEvent, FinetuneResult, StepDone
    from glm3sdk.services.preflight import DatasetReport

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")

# Python notices a signal that comes just before a wait only when the wait ends.
_WAIT_S = 0.5


def config_arguments(command: _Command) -> _Command:
    """Add what names a run configuration: `config` and `overrides`."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a value, such as training.max_steps=10; repeatable.",
        ),
        click.argument("config", shell_complete=complete_config),
    ):
        command = option(command)
    return command


class ConfigMistake(click.ClickException):
    """Every problem of a run configuration, a line each; exit code 2."""

    exit_code = 2

    def __init__(self, error: InvalidRunConfigError) -> None:
        super().__init__("\n".join(f"glm3: error: {problem}" for problem in error.problems))

    def show(self, file: Any = None) -> None:
        """Print the lines."""
        click.echo(self.message, file=file, err=file is None)


@click.command()
@config_arguments
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def finetune(config: str, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    r"""Train a model, or a LoRA adapter, as CONFIG says.

    CONFIG is a YAML file, ours or MindFormers', or the name of a preset such as lora_tiny.
    Ctrl-C ends the step, saves a checkpoint and leaves; a second one leaves at once.

    \b
    Examples:
      glm3 finetune lora_tiny --set train_data.path=train.jsonl --set output=runs/first
      glm3 finetune run.yaml --resume
      glm3 launch -- glm3 finetune run.yaml            # over several cards
    """
    from glm3sdk.bootstrap import load_finetune
    from glm3sdk.bootstrap.run_job import leads_job

    if not leads_job():  # one rank's warnings are enough
        logging.getLogger("glm3sdk").setLevel(logging.ERROR)
    try:
        run = load_finetune(config, overrides=overrides)
    except InvalidRunConfigError as exc:
        raise ConfigMistake(exc) from exc
    if run.leads:
        _show_preflight(run)
    with _view(run) as view:
        result = until_stopped(
            lambda should_stop: run.run(resume=resume, on_event=view.show, should_stop=should_stop),
            on_stop=lambda: view.note("stopping after this step; Ctrl-C again leaves at once"),
        )
    if run.leads:
        if as_json:
            click.echo(json.dumps(_result_json(run, result), ensure_ascii=False))
        elif result.finished:
            _show_result(run, result)
        if not result.finished:
            sets = [word for override in overrides for word in ("--set", override)]
            again = shlex.join(["glm3", "finetune", config, *sets, "--resume"])
            _show_stop(run, result, again if run.alone else f"glm3 launch ... -- {again}")
    if not result.finished:
        raise click.exceptions.Exit(INTERRUPTED)


def until_stopped(
    work: Callable[[Callable[[], bool]], _Value], *, on_stop: Callable[[], None]
) -> _Value:
    """Run work on a thread; the first Ctrl-C or SIGTERM asks it to stop, the second one raises.

    The main thread is where signals arrive, and there they would break a step.
    """
    stop = threading.Event()
    outcome: Future[_Value] = Future()
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.set_result(work(stop.is_set))
        except BaseException as exc:  # raised again in the main thread
            outcome.set_exception(exc)
        ended.put(None)

    def wait() -> None:
        while not outcome.done():
            with suppress(queue.Empty):
                ended.get(timeout=_WAIT_S)

    thread = threading.Thread(target=run, name="glm3-finetune", daemon=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            thread.start()
            wait()
        except KeyboardInterrupt:
            if thread.ident is None:  # it was not started, and would never end
                raise
            stop.set()
            on_stop()
            wait()
        return outcome.result()
    finally:
        signal.signal(signal.SIGTERM, before)


class _View(AbstractContextManager["_View"], Protocol):
    """Shows a run's events on standard error."""

    def show(self, event: FinetuneEvent) -> None:
        """Show an event."""

    def note(self, text: str) -> None:
        """Show a line."""


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    def show(self, event: FinetuneEvent) -> None:
        """Pass over an event."""

    def note(self, text: str) -> None:
        """Pass over a line."""


class _Lines:
    """Plain lines, for logs."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._pace = _Pace()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    def show(self, event: FinetuneEvent) -> None:
        """Print a line; of steps, every `every`-th and the last one."""
        from glm3sdk.services.finetune import StepDone

        if not isinstance(event, StepDone):
            self.note(_line(event))
            return
        remaining = self._pace.remaining(event)
        if event.metrics is None:
            self.note(f"step {event.step}/{event.total_steps}: {_skipped(event)}")
        elif event.step % self._every == 0 or event.step == event.total_steps:
            self.note(
                f"step {event.step}/{event.total_steps}: loss {event.metrics.loss:.4f}, "
                f"learning rate {event.learning_rate:.3g}, {event.tokens_per_s:.0f} tokens/s, "
                f"{remaining} left"
            )

    def note(self, text: str) -> None:
        """Print a line."""
        click.echo(text, err=True)


class _Bar:
    """A bar that stays at the bottom of a terminal."""

    def __init__(self, total_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._pace = _Pace()
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total_steps, figures="starting ...")
        self._eval_loss = ""

    def __enter__(self) -> _Bar:
        try:
            self._progress.start()
        except BaseException:  # Ctrl-C must not leave the cursor hidden
            self._progress.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: FinetuneEvent) -> None:
        """Move the bar, or print a line above it."""
        from glm3sdk.services.finetune import Evaluated, StepDone

        if isinstance(event, StepDone):
            remaining = self._pace.remaining(event)
            loss = _skipped(event) if event.metrics is None else f"loss {event.metrics.loss:.4f}"
            figures = (
                f"{loss}{self._eval_loss}  lr {event.learning_rate:.3g}  "
                f"{event.tokens_per_s:.0f} tokens/s  {remaining} left"
            )
            self._progress.update(self._task, completed=event.step, figures=figures)
            return
        if isinstance(event, Evaluated):
            self._eval_loss = f"  eval loss {event.loss:.4f}"
        self.note(_line(event))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Pace:
    """Estimates what is left; the first step, which compiles, does not count."""

    def __init__(self) -> None:
        self._first = True
        self._step_s: float | None = None

    def remaining(self, event: StepDone) -> str:
        """Time to the last step as h:mm:ss."""
        left = event.total_steps - event.step
        if left == 0:
            return "0:00:00"
        if self._first:
            self._first = False
            return "?"
        last = event.remaining_s / left
        self._step_s = last if self._step_s is None else 0.9 * self._step_s + 0.1 * last
        minutes, seconds = divmod(round(self._step_s * left), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _view(run: Finetune) -> _View:
    if not run.leads:
        return _Silent()
    return _Bar(run.total_steps) if is_terminal() else _Lines(run.config.training.log_every)


def _line(event: FinetuneEvent) -> str:
    from glm3sdk.services.finetune import CheckpointSaved, Evaluated

    if isinstance(event, Evaluated):
        return f"step {event.step}: eval loss {event.loss:.4f}"
    if isinstance(event, CheckpointSaved):
        return f"step {event.step}: saved {event.uri}"
    return f"step {event.step}"


def _skipped(event: StepDone) -> str:
    return f"skipped, the gradient overflowed at loss scale {event.loss_scale:g}"


def _show_preflight(run: Finetune) -> None:
    _show_data("train", run.train.report)
    if run.evaluation is not None:
        _show_data("evaluation", run.evaluation.report)
    click.echo(f"{run.total_steps} steps into {run.config.output}", err=True)


def _show_data(kind: str, report: DatasetReport) -> None:
    dropped = sum(group.count for group in report.dropped)
    click.echo(
        f"{kind} data {report.name}: {report.taken} records taken, {dropped} dropped, "
        f"{report.truncated} cut to {report.seq_length} tokens; "
        f"{report.trained_tokens} of {report.tokens} tokens are trained",
        err=True,
    )


def _result_json(run: Finetune, result: FinetuneResult) -> dict[str, Any]:
    output = run.config.output
    return {
        "finished": result.finished,
        "steps": result.step,
        "total_steps": run.total_steps,
        "loss": result.loss,
        "eval_loss": result.eval_loss,
        "perplexity": _perplexity(result.eval_loss),
        "output": output,
        "result": result.uri if result.finished else None,
        "checkpoint": None if result.finished or not result.step else result.uri,
        "metrics": run.output.figure("metrics.csv"),
        "plot": run.output.figure("loss.png"),
    }


def _show_result(run: Finetune, result: FinetuneResult) -> None:
    output = run.config.output
    losses = [] if result.loss is None else [f"loss {result.loss:.4f}"]
    if result.eval_loss is not None:
        losses.append(f"eval loss {result.eval_loss:.4f}")
        if (perplexity := _perplexity(result.eval_loss)) is not None:
            losses.append(f"perplexity {perplexity:.4g}")
    click.echo(f"finished {result.step} steps: {', '.join(losses) or 'nothing to do'}")
    click.echo(f"result: {result.uri}")
    figures = (run.output.figure("metrics.csv"), run.output.figure("loss.png"))
    click.echo(f"figures: {', '.join(path for path in figures if path)}")
    click.echo(f"chat with it: {shlex.join(['glm3', 'chat', '--model', output])}")


def _show_stop(run: Finetune, result: FinetuneResult, again: str) -> None:
    if result.step:
        click.echo(f"stopped after step {result.step}/{run.total_steps}: {result.uri}", err=True)
        click.echo(f"go on with: {again}", err=True)
    else:
        click.echo("stopped before the first step; nothing was saved", err=True)


def _perplexity(loss: float | None) -> float | None:
    """None where it is not known or no float."""
    if loss is None:
        return None
    try:
        return math.exp(loss)
    except OverflowError:
        return None
