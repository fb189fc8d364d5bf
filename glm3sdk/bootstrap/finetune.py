"""A finetune run composed from its configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.cluster.environment import restarts
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, TOKENIZER_FILE
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.strategy_file import decode_strategy, encode_strategy
from glm3sdk.bootstrap.disk_space import require_space
from glm3sdk.bootstrap.metric_sinks import find_sinks, open_sinks
from glm3sdk.bootstrap.models import (
    BUNDLED,
    OpenedModel,
    is_fetched,
    model_directory,
    open_model,
)
from glm3sdk.bootstrap.prediction import read_config
from glm3sdk.bootstrap.pulling import pull_tokenizer
from glm3sdk.bootstrap.run_fingerprint import fingerprint
from glm3sdk.bootstrap.run_job import RunJob, run_job
from glm3sdk.bootstrap.run_output import RunOutput, run_output
from glm3sdk.bootstrap.runtimes import (
    DEFAULT_RUNTIME,
    check_runtime,
    runtime_factory,
    start_runtime,
)
from glm3sdk.bootstrap.serving import load_tokenizer
from glm3sdk.config.contradictions import FLASH_ATTENTION_MULTIPLE
from glm3sdk.config.loader import dump_config
from glm3sdk.config.schema import DataSettings, RunConfig, RunMode
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import (
    CheckpointWriteError,
    InvalidDatasetError,
    UserError,
)
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import AdamW, TokenBatch, TrainingPlan, TrainingSession
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import Dataset, open_dataset
from glm3sdk.services.finetune import FinetuneEvent, FinetuneResult, FinetuneRun, RunLimits
from glm3sdk.services.run_checkpoints import RESULT, WEIGHTS_FILE
from glm3sdk.services.run_shards import StrategyFormat
from glm3sdk.services.training_data import OrderedBatches


class Finetune:
    """A checked finetune run; `load_finetune` makes one.

    Attributes:
        config: what it was composed from.
        train: the training data, with what preflight found in `report`.
        evaluation: the evaluation data, or None.
        total_steps: optimizer steps of the whole run.
        output: where its checkpoints and figures go.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        output: RunOutput,
        job: RunJob,
        opened: OpenedModel,
        tokenizer: Tokenizer,
        tokenizer_model: bytes,
    ) -> None:
        if config.train_data is None:
            raise UserError("train_data is missing: name the file to learn from")
        self.config, self.output = config, output
        self._lora = _lora(config)
        self._job, self._ranks, self._place = job, job.ranks, job.place
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
            rank=self._place.data_rank,
            world=self._place.plan.data,
            seed=training.seed,
            shuffle=config.train_data.shuffle,
        )
        steps = self._order.steps(training.epochs)
        self.total_steps = min(steps, training.max_steps or steps)

    @property
    def alone(self) -> bool:
        """Whether no other rank takes part."""
        return self._place.alone

    @property
    def leads(self) -> bool:
        """Whether this process is the first rank, which speaks for the run."""
        return self._ranks.leads

    def run(
        self,
        *,
        resume: bool = False,
        on_event: Callable[[FinetuneEvent], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FinetuneResult:
        """Train, evaluate, keep checkpoints, and publish the result into the output.

        Every rank of a job calls this, once; figures and files that are written once are the
        first rank's.

        Args:
            resume: go on from the newest checkpoint of the output, if there is one; a job that
                the launcher has started again does so in any case.
            on_event: is told of every step, evaluation and checkpoint.
            should_stop: asked between steps; True saves a checkpoint and ends the run; where it
                is True on one rank, every rank ends after the same step.

        Returns:
            Steps, losses, and where the result lies.

        Raises:
            UserError: the output holds another run, or another process is at it.
            InvalidCheckpointError: the checkpoint to resume from is damaged or of another
                configuration.
            NonFiniteLossError: the loss or gradient of a step is not finite.
            CheckpointWriteError: the disk is full, the directory not writable, or the store
                takes nothing.
            BlobAccessError, BlobUnavailableError: the store does not let it be known what is there.
        """
        output, ranks = self.output, self._ranks
        restarted = restarts(os.environ) > 0
        resume = resume or restarted
        with ExitStack() as held:
            self._job.enter()
            if restarted and ranks.any(ranks.leads and output.has_result()):
                return self._finished_before()
            ranks.lead(lambda: held.enter_context(output.working(resume=resume)))
            with ExitStack() as stack:
                runtime = self._start_runtime()
                stack.callback(runtime.close)
                session = runtime.start_training(plan=self._plan())
                stack.callback(session.close)
                run = self._compose(session, dtype=runtime.capabilities.dtype)
                step = run.resume() if resume else 0
                ranks.lead(lambda: self._prepare(session, step))
                sinks = stack.enter_context(
                    open_sinks(
                        find_sinks(self.config.metrics.sinks) if ranks.leads else (),
                        folder=output.folder,
                        uri=output.uri,
                        first_step=step + 1,
                    )
                )
                with _advising(output):
                    result = run.run(sinks=sinks, on_event=on_event, should_stop=should_stop)
            if ranks.leads:
                output.end(finished=result.finished)
        self._job.leave()
        return result

    def _prepare(self, session: TrainingSession, step: int) -> None:
        """What the first rank does before the steps begin."""
        require_space(
            self.output,
            session,
            self.config.checkpoints,
            total_steps=self.total_steps,
            step=step,
            ranks=self._ranks,
        )
        if not step:
            self.output.write_config(dump_config(self.config))

    def _finished_before(self) -> FinetuneResult:
        """What is told of a run whose ranks failed after its result was published."""
        uri = f"{self.output.uri}/{RESULT}"
        self._job.leave()
        return FinetuneResult(
            step=self.total_steps, finished=True, loss=None, eval_loss=None, uri=uri
        )

    def _open(self, settings: DataSettings, *, keep_masked: bool = False) -> Dataset:
        flash = self.config.model.flash_attention and "ascend" in (self.config.runtime.name or "")
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

    def _start_runtime(self) -> ModelRuntime:
        settings, topology = self.config.runtime, self._job.topology
        return start_runtime(
            self._opened,
            runtime=settings.name,
            dtype=settings.dtype,
            device_id=topology.placement.device_id if topology else settings.device_id,
            max_device_memory=settings.max_device_memory,
            place=self._place,
        )

    def _plan(self) -> TrainingPlan:
        return TrainingPlan(
            optimizer=AdamW(**attrs.asdict(self.config.optimizer)),
            lora=self._lora,
            recompute=self.config.model.recompute,
            flash_attention=self.config.model.flash_attention,
            seed=self.config.training.seed,
        )

    def _compose(self, session: TrainingSession, *, dtype: str) -> FinetuneRun:
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
            store=self.output.store,
            uri=self.output.uri,
            files=self._files(),
            weights_file=ADAPTER_TENSORS if self._lora else WEIGHTS_FILE,
            fingerprint=fingerprint(
                config,
                dtype=dtype,
                train=self.train,
                tokenizer_model=self._tokenizer_model,
                total_steps=self.total_steps,
            ),
            before_publish=self.output.send,
            ranks=self._ranks,
            strategies=StrategyFormat(encode=encode_strategy, decode=decode_strategy),
        )

    def _eval_batches(self) -> Iterator[TokenBatch]:
        assert self.evaluation is not None  # noqa: S101  # asked for only where there is one
        return self.evaluation.in_order(
            self.config.training.batch_size, rank=self._place.data_rank, world=self._place.plan.data
        )

    def _files(self) -> dict[str, bytes]:
        """What makes a checkpoint a model that can be loaded."""
        name, values = CONFIG_FILE, self._opened.config.to_hugging_face()
        if self._lora:
            model = self.config.model.path
            # What is bundled or fetched is elsewhere on another machine; other paths hold from
            # anywhere.
            named = model in BUNDLED or is_fetched(model)
            base = model if named else str(self._opened.path.resolve())
            name, values = ADAPTER_CONFIG, self._lora.to_peft(base=base)
        encoded = (json.dumps(values, indent=2) + "\n").encode()
        return {name: encoded, TOKENIZER_FILE: self._tokenizer_model}


def load_finetune(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
) -> Finetune:
    """Compose a finetune run and check everything that can be known before it starts.

    Args:
        config: a `RunConfig`, its values as a mapping, a YAML file, or a preset's name.
        overrides: for a file or preset, `key=value` texts such as "training.max_steps=10".

    Returns:
        The run; its `run()` trains.

    Raises:
        InvalidRunConfigError: with every problem of the configuration.
        InvalidDatasetError: a data file that cannot be used, naming file and line.
        InvalidTokenizerError: the tokenizer does not fit the model.
        InvalidCheckpointError: the model to start from cannot be opened.
        InvalidParallelPlanError: so many ranks as the configuration asks for were not started, or
            cannot share the model.
        InvalidPlacementError: the environment does not say which rank this process is.
        UnsupportedOptionError: the runtime holds a model in one process.
        UnknownNameError: nothing is known by the name of the runtime or of a metric sink, or for
            the output's scheme.
    """
    config = read_config(config, overrides)
    if config.mode is not RunMode.FINETUNE:
        raise UserError(f"mode is {config.mode}; a finetune run needs mode finetune")
    runtime = config.runtime.name or DEFAULT_RUNTIME
    runtime_factory(runtime)
    config = attrs.evolve(config, runtime=attrs.evolve(config.runtime, name=runtime))
    find_sinks(config.metrics.sinks)
    output = run_output(config.output)
    opened = open_model(config.model.path)
    check_runtime(opened, runtime)
    job = run_job(config, opened.config, _lora(config))
    path = _tokenizer_file(config.model.tokenizer or opened.tokenizer_path or opened.path)
    return Finetune(
        config,
        output=output,
        job=job,
        opened=opened,
        tokenizer=load_tokenizer(path),
        tokenizer_model=path.read_bytes(),
    )


def _lora(config: RunConfig) -> Lora | None:
    return Lora(**attrs.asdict(config.lora)) if config.lora else None


def _tokenizer_file(path: str | Path) -> Path:
    if is_fetched(path):
        return pull_tokenizer(str(path))
    found = model_directory(path) if str(path) in BUNDLED else Path(path)
    return found / TOKENIZER_FILE if found.is_dir() else found


@contextmanager
def _advising(output: RunOutput) -> Iterator[None]:
    """Say after a failure to publish what is left of a run on a store."""
    try:
        yield
    except CheckpointWriteError as exc:
        if output.is_local:
            raise
        raise CheckpointWriteError(
            f"{exc}. The steps since the newest published checkpoint are lost; resume the run to "
            "go on from there"
        ) from exc
