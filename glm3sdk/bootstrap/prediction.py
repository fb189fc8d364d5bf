"""The predict run: prompts from a file, answered into another, as a configuration says."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.bootstrap.models import OpenedModel, open_model
from glm3sdk.bootstrap.runtimes import check_runtime, runtime_factory, start_runtime
from glm3sdk.bootstrap.serving import load_tokenizer
from glm3sdk.config.loader import check_config, config_from_mapping, load_config
from glm3sdk.config.schema import DataFormat, RunConfig
from glm3sdk.domain.chat import Message
from glm3sdk.domain.dataset import DropKind, Dropped
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import (
    InvalidConstraintError,
    InvalidDatasetError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
    UnknownNameError,
)
from glm3sdk.ports.constraint import ConstraintCompiler
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.continuations import PromptLine, RecordReader
from glm3sdk.services.prediction import Record, predict
from glm3sdk.services.preparation import Preparation
from glm3sdk.services.record_layout import RecordLayout

# Enough to find the mistake, and a file of nothing else fills no screen.
_NAMED_LINES = 5
_UNUSABLE = (
    InvalidConstraintError,
    InvalidDatasetError,
    InvalidMessageError,
    InvalidToolError,
    PromptTooLongError,
    UnknownNameError,
)


def _constraints(model: ConfiguredModel) -> ConstraintCompiler:
    return LlguidanceConstraints(model.tokenizer)


@attrs.frozen(eq=False)
class ConfiguredModel:
    """A model that is open but not loaded, and how it is to write.

    Attributes:
        config: the run configuration.
        opened: the model.
        tokenizer: its tokenizer.
        generation: the configuration's parameters of every reply.
        constraints: prepares what `tool_choice` holds a reply to.
    """

    config: RunConfig
    opened: OpenedModel
    tokenizer: Tokenizer
    generation: GenerationConfig
    constraints: ConstraintCompiler = attrs.field(
        init=False, default=attrs.Factory(_constraints, takes_self=True)
    )

    @property
    def max_seq_length(self) -> int:
        """Tokens of a prompt and its reply that the kv_cache has room for."""
        settings = self.config.generation
        return settings.max_seq_length or min(self.opened.config.seq_length, settings.max_length)

    @property
    def batch_size(self) -> int:
        """Prompts to hand over at once: several for each slot, since replies differ in length."""
        return 4 * self.config.generation.batch_size

    def check(
        self, prompt: str | tuple[Message, ...], config: GenerationConfig | None = None
    ) -> None:
        """Check a prompt before anything is loaded.

        Args:
            prompt: the prompt.
            config: how it is to be answered, where not as the configuration says.

        Raises:
            InvalidMessageError: it cannot be read.
            InvalidToolError: a tool that it offers cannot be described.
            PromptTooLongError: it leaves no room for a reply.
            InvalidConstraintError: `tool_choice` cannot be enforced for its tools.
            BackendUnavailableError: `tool_choice` needs `pip install 'glm3sdk[structured]'`.
        """
        preparation = Preparation(self.tokenizer, self.max_seq_length, constraints=self.constraints)
        config = config or self.generation
        if isinstance(prompt, str):
            preparation.completion(prompt, attrs.evolve(config, tool_choice=None))
        else:
            preparation.chat(prompt, config, None)

    def load(self) -> Glm3Service:
        """Load the model; closing the service closes its runtime too."""
        settings = self.config.runtime
        runtime = start_runtime(
            self.opened,
            runtime=settings.name,
            dtype=settings.dtype,
            device_id=settings.device_id,
            max_device_memory=settings.max_device_memory,
        )
        try:
            return Glm3Service(
                runtime=runtime,
                tokenizer=self.tokenizer,
                slots=self.config.generation.batch_size,
                max_seq_length=self.max_seq_length,
                owns_runtime=True,
                constraints=self.constraints,
            )
        except BaseException:
            runtime.close()
            raise


class Predictor:
    """A checked predict run; `load_predictor` makes one.

    Attributes:
        model: the model that answers.
    """

    def __init__(self, model: ConfiguredModel) -> None:
        self.model = model
        data = model.config.eval_data
        layout = RecordLayout(format=DataFormat.ADGEN)
        if data is not None and data.format is not DataFormat.MULTITURN:
            layout = RecordLayout(
                format=data.format,
                columns=data.columns,
                max_source_length=data.max_source_length,
            )
        self._reader = RecordReader(layout, model.tokenizer)

    def load(self) -> Glm3Service:
        """Load the model, to ask it anything; close it when done."""
        return self.model.load()

    def run(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> int:
        """Answer every line of a file; the answers appear when all of them are there.

        A line is `{"prompt": text}`, which is continued as it is, `{"messages": [...]}`, which
        may offer "tools", or a record `{"content": ..., "summary": ...}`, read as
        `eval_data` says: without one as a raw prompt. It comes back with "prediction" and
        "finish_reason" added, in the same order; blank lines are passed over.

        Args:
            source: a JSON Lines file.
            target: the file to write.
            progress: called with how many lines are answered, and how many there are.

        Returns:
            How many lines were answered.

        Raises:
            InvalidDatasetError: lines that cannot be read, or leave no room for a reply;
                known before the model is loaded.
            UserError: nothing can be written to `target`.
        """
        lines = JsonLinesFile(Path(source))
        total = self._check(lines)
        progress(0, total)
        asked: deque[Mapping[str, Any]] = deque()

        def records() -> Iterator[Record]:
            for prompt in self._prompts(lines):
                asked.append(prompt.fields)
                if isinstance(prompt.prompt, str):
                    yield prompt.prompt, ""
                else:
                    yield prompt.prompt, Message.assistant("")

        with whole_file(Path(target)) as file, self.model.load() as service:
            for prediction in predict(
                service,
                records(),
                config=self.model.generation,
                batch_size=self.model.batch_size,
                progress=lambda done: progress(done, total),
            ):
                answered = {**asked.popleft(), **prediction.outcome_json()}
                file.write(json.dumps(answered, ensure_ascii=False).encode() + b"\n")
        return total

    def _check(self, lines: JsonLinesFile) -> int:
        problems: list[str] = []
        total = wrong = 0
        for number, prompt in self._read(lines):
            total += 1
            try:
                if isinstance(prompt, Dropped):
                    raise InvalidDatasetError(prompt.reason)
                json.dumps(prompt.fields, ensure_ascii=False).encode()
                self.model.check(prompt.prompt)
            except UnicodeEncodeError:
                reason = "holds half of a character (a lone surrogate)"
            except _UNUSABLE as exc:
                reason = str(exc)
            else:
                continue
            wrong += 1
            if wrong <= _NAMED_LINES:
                problems.append(f"{lines.name}:{number}: {reason}")
        if wrong > _NAMED_LINES:
            problems.append(f"{lines.name}: {wrong - _NAMED_LINES} more lines cannot be used")
        if problems:
            raise InvalidDatasetError("; ".join(problems))
        if not total:
            raise InvalidDatasetError(
                f'{lines.name} is empty; write lines such as {{"prompt": "..."}}'
            )
        return total

    def _prompts(self, lines: JsonLinesFile) -> Iterator[PromptLine]:
        for number, prompt in self._read(lines):
            if isinstance(prompt, Dropped):
                raise InvalidDatasetError(f"{lines.name}:{number}: {prompt.reason}")
            yield prompt

    def _read(self, lines: JsonLinesFile) -> Iterator[tuple[int, PromptLine | Dropped]]:
        for line in lines.lines():
            prompt = self._reader.prompt(line)
            if not (isinstance(prompt, Dropped) and prompt.kind is DropKind.EMPTY_LINE):
                yield line.number, prompt


def load_predictor(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    stop: Sequence[str] = (),
) -> Predictor:
    """Compose a predict run; the model is opened, not yet loaded.

    Args:
        config: a `RunConfig`, its values as a mapping, a YAML file, or a preset's name.
        overrides: for a file or preset, `key=value` texts such as "model.path=tiny".
        stop: texts that end a reply.

    Raises:
        InvalidRunConfigError: with every problem of the configuration.
        InvalidCheckpointError: the model cannot be opened.
        InvalidTokenizerError: there is no tokenizer.
        UnknownNameError: no runtime goes by that name.
    """
    return Predictor(configured_model(read_config(config, overrides), stop=stop))


def read_config(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str]
) -> RunConfig:
    """A checked configuration from whatever a caller has."""
    if isinstance(config, RunConfig):
        check_config(config)
        return config
    if isinstance(config, Mapping):
        return config_from_mapping(config)
    return load_config(os.fspath(config), overrides=overrides)


def configured_model(config: RunConfig, *, stop: Sequence[str] = ()) -> ConfiguredModel:
    """Open a configuration's model and tokenizer."""
    if config.runtime.name is not None:
        runtime_factory(config.runtime.name)  # a wrong name is known before a large checkpoint
    opened = open_model(config.model.path)
    check_runtime(opened, config.runtime.name)
    tokenizer = load_tokenizer(config.model.tokenizer or opened.tokenizer_path or opened.path)
    settings = attrs.asdict(config.generation)
    for name in ("batch_size", "max_seq_length"):
        del settings[name]
    return ConfiguredModel(config, opened, tokenizer, GenerationConfig(**settings, stop=stop))
