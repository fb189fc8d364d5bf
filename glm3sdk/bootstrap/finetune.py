"""A finetune run composed from its configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.metrics.csv import CsvMetricSink
from glm3sdk.adapters.metrics.plot import plot_metrics
from glm3sdk.adapters.metrics.tensorboard import TensorBoardMetricSink
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.bootstrap.models import CHECKPOINTS, RESULT, OpenedModel, open_model
from glm3sdk.bootstrap.runtimes import runtime_factory, start_runtime
from glm3sdk.bootstrap.serving import load_tokenizer
from glm3sdk.config.loader import check_config, config_from_mapping, load_config
from glm3sdk.config.schema import DataSettings, RunConfig
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import UserError
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import AdamW, TokenBatch, TrainingPlan
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import Dataset, open_dataset
from glm3sdk.services.finetune import (
    FinetuneEvent,
    FinetuneResult,
    FinetuneRun,
    RunLimits,
)
from glm3sdk.services.run_checkpoints import WEIGHTS_FILE
from glm3sdk.services.training_data import OrderedBatches

METRICS_FILE = "metrics.csv"
PLOT_FILE = "loss.png"
TENSORBOARD_DIRECTORY = "tensorboard"

# FlashAttentionScore needs it; the explicit attention does not.
_FLASH_MULTIPLE = 16

# What a resumed run must have in common with the one before: all that decides its losses.
_DECIDING = (
    "model",
    "lora",
    "train_data",
    "training",
    "optimizer",
    "schedule",
    "loss_scale",
)
_FREE = ("training.log_every", "training.epochs", "training.max_steps", "model.recompute")


class Finetune:
    """A checked finetune run; `load_finetune` makes one.

    Attributes:
        config: what it was composed from.
        train: the training data, with what preflight found in `report`.
        evaluation: the evaluation data, or None.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, config: RunConfig, opened: OpenedModel, tokenizer: Tokenizer) -> None:
        if config.train_data is None:
            raise UserError("train_data is missing: name the file to learn from")
        self.config = config
        self._opened = opened
        self._tokenizer = tokenizer
        self.train = self._open(config.train_data)
        evaluated = config.eval_data if config.evaluation.during_training else None
        self.evaluation = self._open(evaluated, keep_masked=True) if evaluated else None
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
            should_stop: asked after every step; True saves a checkpoint and ends the run.

        Raises:
            UserError: the output directory holds another run.
            InvalidCheckpointError: the checkpoint to resume from is damaged or of another
                configuration.
            NonFiniteLossError: the loss or gradient of a step is not finite.
            CheckpointWriteError: the disk is full or the directory not writable.
        """
        output = Path(self.config.output)
        self._require_free_output(output, resume=resume)
        with ExitStack() as stack:
            runtime = self._start_runtime()
            stack.callback(runtime.close)
            run = self._compose(runtime, output, stack)
            step = run.resume() if resume else 0
            first = step + 1 if step else 0
            sinks = (
                CsvMetricSink(output / METRICS_FILE, first_step=first),
                TensorBoardMetricSink(output / TENSORBOARD_DIRECTORY, first_step=first),
            )
            for sink in sinks:
                stack.callback(sink.close)
            result = run.run(sinks=sinks, on_event=on_event, should_stop=should_stop)
        if (output / METRICS_FILE).exists():
            plot_metrics(output / METRICS_FILE, output / PLOT_FILE)
        return result

    def _open(self, settings: DataSettings, *, keep_masked: bool = False) -> Dataset:
        flash = self.config.model.flash_attention and "ascend" in self.config.runtime.name
        return open_dataset(
            JsonLinesFile(Path(settings.path)),
            settings,
            self._tokenizer,
            seq_length=self.config.training.seq_length,
            padded_vocab_size=self._opened.config.padded_vocab_size,
            multiple_of=_FLASH_MULTIPLE if flash else 1,
            max_records=self.config.evaluation.max_records if keep_masked else None,
            keep_masked=keep_masked,
        )

    def _require_free_output(self, output: Path, *, resume: bool) -> None:
        taken = [name for name in (RESULT, CHECKPOINTS) if (output / name).exists()]
        if (output / RESULT).exists():
            raise UserError(f"{output} holds a finished run; choose another output, or delete it")
        if taken and not resume:
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

    def _compose(self, runtime: ModelRuntime, output: Path, stack: ExitStack) -> FinetuneRun:
        config = self.config
        lora = Lora(**attrs.asdict(config.lora)) if config.lora else None
        session = runtime.start_training(
            plan=TrainingPlan(
                optimizer=AdamW(**attrs.asdict(config.optimizer)),
                lora=lora,
                recompute=config.model.recompute,
                seed=config.training.seed,
            )
        )
        stack.callback(session.close)
        scale = config.loss_scale
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
            files=self._files(lora),
            weights_file=ADAPTER_TENSORS if lora else WEIGHTS_FILE,
            fingerprint=self._fingerprint(),
        )

    def _eval_batches(self) -> Iterator[TokenBatch]:
        assert self.evaluation is not None  # noqa: S101  # asked for only where there is one
        return self.evaluation.in_order(self.config.training.batch_size)

    def _files(self, lora: Lora | None) -> dict[str, bytes]:
        """What makes a checkpoint a model that can be loaded."""
        files: dict[str, Any] = {}
        if lora:
            base = self.config.model.path
            path = base if base != str(self._opened.path) and not Path(base).exists() else None
            files[ADAPTER_CONFIG] = lora.to_peft(base=path or str(self._opened.path.resolve()))
        else:
            files["config.json"] = self._opened.config.to_hugging_face()
        encoded = {name: (json.dumps(v, indent=2) + "\n").encode() for name, v in files.items()}
        tokenizer = self.config.model.tokenizer or self._opened.tokenizer_path
        if tokenizer:
            encoded["tokenizer.model"] = Path(tokenizer).read_bytes()
        return encoded

    def _fingerprint(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"records": len(self.train), "total_steps": self.total_steps}
        for section in _DECIDING:
            settings = getattr(self.config, section)
            values = attrs.asdict(settings) if settings is not None else {"": None}
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        for key in _FREE:
            flat.pop(key, None)
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
    """
    if isinstance(config, RunConfig):
        check_config(config)
    elif isinstance(config, Mapping):
        config = config_from_mapping(config)
    else:
        config = load_config(os.fspath(config), overrides=overrides)
    runtime_factory(config.runtime.name)
    opened = open_model(config.model.path)
    tokenizer = load_tokenizer(config.model.tokenizer or opened.tokenizer_path or opened.path)
    return Finetune(config, opened, tokenizer)
