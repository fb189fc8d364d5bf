"""A finetune run composed from its configuration."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.metrics.csv import CsvMetricSink
from glm3sdk.adapters.metrics.plot import plot_metrics
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, TOKENIZER_FILE
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.adapters.storage.write_failure import writing
from glm3sdk.bootstrap.disk_space import require_space
from glm3sdk.bootstrap.models import BUNDLED, OpenedModel, model_directory, open_model
from glm3sdk.bootstrap.prediction import read_config
from glm3sdk.bootstrap.runtimes import runtime_factory, start_runtime
from glm3sdk.bootstrap.serving import load_tokenizer
from glm3sdk.config.contradictions import FLASH_ATTENTION_MULTIPLE
from glm3sdk.config.loader import dump_config
from glm3sdk.config.schema import DataSettings, RunConfig, RunMode
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import Glm3Error, InvalidDatasetError, UnsupportedOptionError, UserError
from glm3sdk.ports.metric_sink import MetricSink
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import AdamW, TokenBatch, TrainingPlan, TrainingSession
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import Dataset, open_dataset
from glm3sdk.services.finetune import FinetuneEvent, FinetuneResult, FinetuneRun, RunLimits
from glm3sdk.services.run_checkpoints import CHECKPOINTS, RESULT, WEIGHTS_FILE
from glm3sdk.services.training_data import OrderedBatches

CONFIG_COPY = "config.yaml"
METRICS_FILE = "metrics.csv"
PLOT_FILE = "loss.png"
TENSORBOARD_DIRECTORY = "tensorboard"

_log = logging.getLogger(__name__)

# What a resumed run must have in common with the one before: all that decides its losses.
_DECIDING = ("model", "lora", "train_data", "training", "optimizer", "schedule", "loss_scale")
# Of those sections: what decides none, or is compared by what comes of it (the steps, the
# sequence length, the contents of data and tokenizer).
_FREE = (
    "model.recompute",
    "model.tokenizer",
    "train_data.path",
    "training.epochs",
    "training.log_every",
    "training.max_steps",
    "training.seq_length",
)


class Finetune:
    """A checked finetune run; `load_finetune` makes one.

    Attributes:
        config: what it was composed from.
        train: the training data, with what preflight found in `report`.
        evaluation: the evaluation data, or None.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(
        self, config: RunConfig, opened: OpenedModel, tokenizer: Tokenizer, tokenizer_model: bytes
    ) -> None:
        if config.train_data is None:
            raise UserError("train_data is missing: name the file to learn from")
        self.config = config
        self._lora = Lora(**attrs.asdict(config.lora)) if config.lora else None
        self._opened = opened
        self._tokenizer = tokenizer
        self._tokenizer_model = tokenizer_model
        self.train = self._open(config.train_data)
        evaluated = config.eval_data if config.evaluation.during_training else None
        self.evaluation = self._open(evaluated, keep_masked=True) if evaluated else None
        if self.evaluation and not self.evaluation.report.trained_tokens:
            raise InvalidDatasetError(
                f"{self.evaluation.report.name}: no token of the evaluation data counts; use "
                "other records, or leave eval_data out"
            )
        training = config.training
        self._order = DataOrder(
            records=len(self.train),
            batch_size=training.batch_size,
            accumulate=training.accumulate,
            seed=training.seed,
            shuffle=config.train_data.shuffle,
        )
        steps = self._order.steps(training.epochs)
        self.total_steps = min(steps, training.max_steps or steps)

    def run(
        self,
        *,
        resume: bool = False,
        on_event: Callable[[FinetuneEvent], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FinetuneResult:
        """Train, evaluate, keep checkpoints, and publish the result into the output directory.

        Args:
            resume: go on from the newest checkpoint of the output directory, if there is one.
            on_event: is told of every step, evaluation and checkpoint.
            should_stop: asked between steps; True saves a checkpoint and ends the run.

        Raises:
            UserError: the output directory holds another run.
            InvalidCheckpointError: the checkpoint to resume from is damaged or of another
                configuration.
            NonFiniteLossError: the loss or gradient of a step is not finite.
            CheckpointWriteError: the disk is full or the directory not writable.
        """
        output = Path(self.config.output)
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        self._require_free_output(output, resume=resume)
        with ExitStack() as stack:
            runtime = self._start_runtime()
            stack.callback(runtime.close)
            session = runtime.start_training(plan=self._plan())
            stack.callback(session.close)
            run = self._compose(session, output, dtype=runtime.capabilities.dtype)
            step = run.resume() if resume else 0
            require_space(output, session, self.config.checkpoints, self.total_steps, step)
            if not step:
                with whole_file(output / CONFIG_COPY) as file:
                    file.write(dump_config(self.config).encode())
            result = run.run(
                sinks=self._sinks(output, step + 1, stack),
                on_event=on_event,
                should_stop=should_stop,
            )
        _plot(output)
        return result

    def _open(self, settings: DataSettings, *, keep_masked: bool = False) -> Dataset:
        flash = self.config.model.flash_attention and "ascend" in self.config.runtime.name
        return open_dataset(
            JsonLinesFile(Path(settings.path)),
            settings,
            self._tokenizer,
            seq_length=self.config.training.seq_length,
            padded_vocab_size=self._opened.config.padded_vocab_size,
            multiple_of=FLASH_ATTENTION_MULTIPLE if flash else 1,
            max_records=self.config.evaluation.max_records if keep_masked else None,
            keep_masked=keep_masked,
        )

    def _require_free_output(self, output: Path, *, resume: bool) -> None:
        if (output / RESULT).exists():
            raise UserError(f"{output} holds a finished run; choose another output, or delete it")
        if not resume and LocalCheckpointStore().list(str(output / CHECKPOINTS)):
            raise UserError(
                f"{output} holds a run that did not finish; resume it, or choose another output"
            )

    def _start_runtime(self) -> ModelRuntime:
        settings = self.config.runtime
        return start_runtime(
            self._opened,
            runtime=settings.name,
            dtype=settings.dtype,
            device_id=settings.device_id,
            max_device_memory=settings.max_device_memory,
        )

    def _plan(self) -> TrainingPlan:
        return TrainingPlan(
            optimizer=AdamW(**attrs.asdict(self.config.optimizer)),
            lora=self._lora,
            recompute=self.config.model.recompute,
            flash_attention=self.config.model.flash_attention,
            seed=self.config.training.seed,
        )

    def _sinks(self, output: Path, first_step: int, stack: ExitStack) -> tuple[MetricSink, ...]:
        """Sinks that forget what an earlier process recorded from this step on."""
        figures = CsvMetricSink(output / METRICS_FILE, first_step=first_step)
        stack.callback(figures.close)
        events = TensorBoardMetricSink(output / TENSORBOARD_DIRECTORY, first_step=first_step)
        stack.callback(events.close)
        return figures, events

    def _compose(self, session: TrainingSession, output: Path, *, dtype: str) -> FinetuneRun:
        config, scale = self.config, self.config.loss_scale
        return FinetuneRun(
            session=session,
            data=OrderedBatches(self.train, self._order),
            eval_batches=self._eval_batches if self.evaluation else None,
            schedule=Schedule(
                kind=config.schedule.kind,
                peak=config.schedule.learning_rate,
                end=config.schedule.end,
                warmup_steps=config.schedule.warmup_steps,
                total_steps=config.schedule.total_steps or self.total_steps,
                power=config.schedule.power,
            ),
            limits=RunLimits(
                total_steps=self.total_steps,
                checkpoint_every=config.checkpoints.every,
                keep=config.checkpoints.keep,
                evaluate_every=config.evaluation.every,
                seed=config.training.seed,
            ),
            loss_scale=LossScale(scale=scale.initial, factor=scale.factor, window=scale.window)
            if scale
            else None,
            store=LocalCheckpointStore(),
            uri=str(output),
            files=self._files(),
            weights_file=ADAPTER_TENSORS if self._lora else WEIGHTS_FILE,
            fingerprint=self._fingerprint(dtype),
        )

    def _eval_batches(self) -> Iterator[TokenBatch]:
        assert self.evaluation is not None  # noqa: S101  # asked for only where there is one
        return self.evaluation.in_order(self.config.training.batch_size)

    def _files(self) -> dict[str, bytes]:
        """What makes a checkpoint a model that can be loaded."""
        name, values = CONFIG_FILE, self._opened.config.to_hugging_face()
        if self._lora:
            model = self.config.model.path
            # A bundled model is elsewhere on another machine; other paths hold from anywhere.
            base = model if model in BUNDLED else str(self._opened.path.resolve())
            name, values = ADAPTER_CONFIG, self._lora.to_peft(base=base)
        encoded = (json.dumps(values, indent=2) + "\n").encode()
        return {name: encoded, TOKENIZER_FILE: self._tokenizer_model}

    def _fingerprint(self, dtype: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for section in _DECIDING:
            settings = getattr(self.config, section)
            values = attrs.asdict(settings) if settings is not None else {"": None}
            flat.update({f"{section}.{key}".rstrip("."): value for key, value in values.items()})
        for key in _FREE:
            flat.pop(key, None)
        flat |= {
            "dtype": dtype,
            "records": len(self.train),
            "seq_length": self.train.seq_length,
            "tokenizer.sha256": hashlib.sha256(self._tokenizer_model).hexdigest(),
            "total_steps": self.total_steps,
            "train_data.sha256": _sha256(Path(self.train.report.name)),
        }
        # As a checkpoint's file will give it back: a tuple is a list there.
        same: dict[str, Any] = json.loads(json.dumps(flat))
        return same


def load_finetune(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
) -> Finetune:
    """Compose a finetune run and check everything that can be known before it starts.

    Args:
        config: a `RunConfig`, its values as a mapping, a YAML file, or a preset's name.
        overrides: for a file or preset, `key=value` texts such as "training.max_steps=10".

    Raises:
        InvalidRunConfigError: with every problem of the configuration.
        InvalidDatasetError: a data file that cannot be used, naming file and line.
        InvalidTokenizerError: the tokenizer does not fit the model.
        InvalidCheckpointError: the model to start from cannot be opened.
        UnsupportedOptionError: the configuration asks for several cards.
    """
    config = read_config(config, overrides)
    if config.mode is not RunMode.FINETUNE:
        raise UserError(f"mode is {config.mode}; a finetune run needs mode finetune")
    for name in ("data", "tensor"):
        if (cards := getattr(config.parallel, name)) > 1:
            raise UnsupportedOptionError(
                f"parallel.{name} is {cards} and a run trains on one card; set parallel.{name}=1"
            )
    runtime_factory(config.runtime.name)
    opened = open_model(config.model.path)
    path = _tokenizer_file(config.model.tokenizer or opened.tokenizer_path or opened.path)
    return Finetune(config, opened, load_tokenizer(path), path.read_bytes())


def _tokenizer_file(path: str | Path) -> Path:
    found = model_directory(path) if str(path) in BUNDLED else Path(path)
    return found / TOKENIZER_FILE if found.is_dir() else found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InvalidDatasetError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _plot(output: Path) -> None:
    """Draw the figures; a run that ended well does not fail for want of a picture."""
    try:
        plot_metrics(output / METRICS_FILE, output / PLOT_FILE)
    except Glm3Error as exc:
        _log.warning("no %s was drawn: %s", PLOT_FILE, exc)
