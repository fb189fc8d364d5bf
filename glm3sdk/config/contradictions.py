"""Values that are fine alone and contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from glm3sdk.config.schema import DataFormat, DataSettings, RunConfig, RunMode, ScheduleKind

# FlashAttentionScore on Ascend takes sequence lengths that are a multiple of this.
FLASH_ATTENTION_MULTIPLE = 16


class Contradiction(NamedTuple):
    """Values that do not go together.

    Attributes:
        key: the one to change.
        message: what is wrong with it.
        others: further keys that it follows from.
    """

    key: str
    message: str
    others: tuple[str, ...]


def contradictions(config: RunConfig) -> Iterator[Contradiction]:
    """Every contradiction of a configuration whose values are fine alone."""
    yield from _data(config)
    yield from _lengths(config)
    yield from _flash_attention(config)
    yield from _schedule(config)


def sequence_length(data: DataSettings) -> int | None:
    """Tokens of one sequence of this data, or None where its lengths are not given."""
    if data.format is not DataFormat.ADGEN:
        return data.max_seq_length
    if data.max_source_length is None or data.max_target_length is None:
        return None
    return data.max_source_length + data.max_target_length + 1


def _data(config: RunConfig) -> Iterator[Contradiction]:
    if config.mode is RunMode.FINETUNE and config.train_data is None:
        message = "is required by mode finetune: give at least train_data.path"
        yield Contradiction("train_data", message, ("mode",))
    if config.mode is RunMode.EVALUATE and config.eval_data is None:
        message = "is required by mode evaluate: give at least eval_data.path"
        yield Contradiction("eval_data", message, ("mode",))
    if config.evaluation.every is not None and config.eval_data is None:
        message = "needs eval_data: give at least eval_data.path"
        yield Contradiction("evaluation.every", message, ("eval_data",))
    for section, data in (("train_data", config.train_data), ("eval_data", config.eval_data)):
        if data is None:
            continue
        for name in _lengths_of(data):
            if getattr(data, name) is None:
                message = f"is required by format {data.format}"
                yield Contradiction(f"{section}.{name}", message, (f"{section}.format",))


def _lengths(config: RunConfig) -> Iterator[Contradiction]:
    data, given = config.train_data, config.training.seq_length
    if config.mode is not RunMode.FINETUNE or data is None or given is None:
        return
    needed = sequence_length(data)
    if needed is None or needed == given:
        return
    words = f"train_data.max_seq_length = {needed}"
    if data.format is DataFormat.ADGEN:
        words = (
            f"train_data.max_source_length + max_target_length + 1 = "
            f"{data.max_source_length} + {data.max_target_length} + 1 = {needed}"
        )
    message = f"must be {words}, not {given}; leave it out to take that"
    yield Contradiction("training.seq_length", message, ("mode", *_data_keys(data)))


def _flash_attention(config: RunConfig) -> Iterator[Contradiction]:
    if not config.model.flash_attention or "ascend" not in (config.runtime.name or ""):
        return
    key, length = "generation.max_seq_length", config.generation.max_seq_length
    others: tuple[str, ...] = ("mode", "model.flash_attention", "runtime.name")
    if config.mode is RunMode.FINETUNE:
        key, length = "training.seq_length", config.training.seq_length
        if length is None and config.train_data is not None:
            length = sequence_length(config.train_data)
            key, *more = reversed(_data_keys(config.train_data))
            others += tuple(more)
    if length is not None and length % FLASH_ATTENTION_MULTIPLE:
        message = (
            f"makes sequences of {length} tokens; model.flash_attention takes multiples of "
            f"{FLASH_ATTENTION_MULTIPLE} on Ascend"
        )
        yield Contradiction(key, message, others)


def _schedule(config: RunConfig) -> Iterator[Contradiction]:
    schedule = config.schedule
    if schedule.kind is not ScheduleKind.CONSTANT and schedule.end > schedule.learning_rate:
        message = (
            f"must be at most schedule.learning_rate ({schedule.learning_rate:g}), "
            f"not {schedule.end:g}"
        )
        yield Contradiction("schedule.end", message, ("schedule.learning_rate", "schedule.kind"))
    for key, steps in (
        ("training.max_steps", config.training.max_steps),
        ("schedule.total_steps", schedule.total_steps),
    ):
        if steps is not None and schedule.warmup_steps > steps:
            message = f"must be at most {key} ({steps}), not {schedule.warmup_steps}"
            yield Contradiction("schedule.warmup_steps", message, (key,))


def _lengths_of(data: DataSettings) -> tuple[str, ...]:
    """The fields that decide the length of this data's sequences."""
    if data.format is DataFormat.ADGEN:
        return ("max_source_length", "max_target_length")
    return ("max_seq_length",)


def _data_keys(data: DataSettings) -> tuple[str, ...]:
    return tuple(f"train_data.{name}" for name in ("format", *_lengths_of(data)))
