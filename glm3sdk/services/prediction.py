"""What a model writes where a data file has its own continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import attrs

from glm3sdk.domain.chat import FinishReason, Message, ToolSpec
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import PromptTooLongError
from glm3sdk.services.chat import Glm3Service

Record: TypeAlias = tuple[tuple[Message, ...], Message] | tuple[str, str]
"""A conversation up to an assistant turn, and that turn; tools stand in the system message.
Or a source, which the model reads without roles, and the target that belongs to it."""

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=512)
"""The likeliest token each time, so that a figure can be had again."""


@attrs.frozen
class Prediction:
    """What the model wrote for one record.

    Attributes:
        prompt: the conversation or the source that it read.
        expected: the turn that the record has; of a source and a target, the target.
        written: the turns that it wrote, at least one.
        finish_reason: why it ended.
    """

    prompt: tuple[Message, ...] | str
    expected: Message
    written: tuple[Message, ...]
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        """The text of the first turn; empty where that calls a tool.

        A model may go on with a call after a thought; the record has the call as the
        turn that follows.
        """
        return "" if self.written[0].metadata else self.written[0].content

    def to_json(self) -> dict[str, Any]:
        """Prompt, reference and prediction; a tool call as the model writes it, name first."""
        prompt = self.prompt
        return {
            "prompt": prompt if isinstance(prompt, str) else [*map(_message_json, prompt)],
            "reference": _as_written([self.expected]),
            **self.outcome_json(),
        }

    def outcome_json(self) -> dict[str, str]:
        """What was written, and why it ended."""
        return {
            "prediction": _as_written(self.written),
            "finish_reason": str(self.finish_reason),
        }


def predict(
    service: Glm3Service,
    records: Iterable[Record],
    *,
    config: GenerationConfig | Callable[[Record], GenerationConfig] = GREEDY,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prediction]:
    """Let a model write every record's continuation, in the order of the records.

    Each assistant turn follows the conversation as the file has it, not what the model
    wrote before (teacher forcing). A pair's source is continued as a raw prompt.

    Args:
        service: the loaded model.
        records: read a batch at a time.
        config: generation parameters, or a function of the record that gives them.
        batch_size: records given to the service at once. Several times its slots keep
            them all busy, since replies differ in length.
        progress: called after each batch with the number of records done.

    Raises:
        PromptTooLongError: a prompt leaves no room for a reply; the message says among
            which records, counted from 1. What was yielded before stays good.
    """
    records, done = iter(records), 0
    choose = config if callable(config) else lambda _: config
    while batch := list(islice(records, batch_size)):
        try:
            predictions = _predict_batch(service, batch, choose)
        except PromptTooLongError as exc:
            raise PromptTooLongError(
                f"in records {done + 1} to {done + len(batch)}: {exc}"
            ) from exc
        done += len(batch)
        if progress:
            progress(done)
        yield from predictions


def _predict_batch(
    service: Glm3Service, records: Sequence[Record], choose: Callable[[Record], GenerationConfig]
) -> list[Prediction]:
    by_config: dict[GenerationConfig, list[int]] = {}
    for place, record in enumerate(records):
        by_config.setdefault(choose(record), []).append(place)
    predictions: dict[int, Prediction] = {}
    for config, places in by_config.items():
        written = _predict_alike(service, [records[place] for place in places], config)
        predictions.update(zip(places, written, strict=True))
    return [predictions[place] for place in range(len(records))]


def _predict_alike(
    service: Glm3Service, records: Sequence[Record], config: GenerationConfig
) -> list[Prediction]:
    prompts = [prompt for prompt, _ in records]
    histories = [prompt for prompt in prompts if not isinstance(prompt, str)]
    sources = [prompt for prompt in prompts if isinstance(prompt, str)]
    replies = iter(service.chat_batch(histories, config))
    # A raw prompt offers no tools.
    plain = attrs.evolve(config, tool_choice=None)
    completions = iter(service.generate_batch(sources, plain))
    predictions = []
    for prompt, expected in records:
        if isinstance(prompt, str):
            completion = next(completions)
            written: tuple[Message, ...] = (Message.assistant(completion.text),)
            reason = completion.finish_reason
        else:
            reply = next(replies)
            written, reason = reply.history[len(prompt) :], reply.finish_reason
        turn = Message.assistant(expected) if isinstance(expected, str) else expected
        predictions.append(Prediction(prompt, turn, written, reason))
    return predictions


def _as_written(turns: Iterable[Message]) -> str:
    return "\n".join(
        f"{turn.metadata}\n{turn.content}" if turn.metadata else turn.content for turn in turns
    )


def _message_json(message: Message) -> dict[str, Any]:
    values: dict[str, Any] = {"role": message.role.value, "content": _as_written([message])}
    if message.tools:
        values["tools"] = [
            tool.to_json() if isinstance(tool, ToolSpec) else tool for tool in message.tools
        ]
    return values
