"""From conversations to batches of training sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np

from glm3sdk.domain.chat import Message, Role
from glm3sdk.domain.labels import IGNORED_LABEL, Turn, conversation_labels
from glm3sdk.domain.prompt import GENERATION_PREFIX
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.encoding import encode_message, encode_segments

EOS_ID = 2
PAD_ID = 0


@attrs.frozen
class Example:
    """One training sequence: input_ids and labels `[T]`, the labels already shifted."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_conversation(messages: Iterable[Message], tokenizer: Tokenizer) -> Example:
    """Encode a conversation for training: the assistant's turns are what is learned."""
    turns = []
    for message in messages:
        role_id, *input_ids = encode_message(message, tokenizer)
        turns.append(Turn(role_id, tuple(input_ids), message.role is Role.ASSISTANT))
    prefix = encode_segments(GENERATION_PREFIX, tokenizer)
    tokens, labels = conversation_labels(prefix, turns, eos_id=EOS_ID)
    return Example(tuple(tokens), tuple(labels))


def collate(examples: Sequence[Example], *, seq_length: int) -> TokenBatch:
    """Pad examples on the right to `seq_length`; longer ones are cut.

    A cut sequence's last label is masked, for the token that it names was cut off.
    """
    input_ids = np.full((len(examples), seq_length), PAD_ID, dtype=np.int32)
    labels = np.full((len(examples), seq_length), IGNORED_LABEL, dtype=np.int32)
    for row, example in enumerate(examples):
        kept = min(len(example), seq_length)
        input_ids[row, :kept] = example.input_ids[:kept]
        labels[row, :kept] = example.labels[:kept]
        if kept < len(example):
            labels[row, kept - 1] = IGNORED_LABEL
    return TokenBatch(input_ids=input_ids, labels=labels)


def bucketed_batches(
    examples: Sequence[Example], *, buckets: Sequence[int], batch_tokens: int, seed: int
) -> Iterator[TokenBatch]:
    """Yield batches without end, each padded to the smallest bucket that holds it.

    A graph is compiled for each bucket's length, so padding costs little and there are few
    graphs. Every epoch visits each example once, in an order that the seed decides; a batch
    that lacks examples is filled up with ones that come round again.

    Args:
        examples: the sequences; those longer than the last bucket are cut.
        buckets: lengths, ascending.
        batch_tokens: tokens of a batch, padding included.
        seed: of the order.
    """
    order = np.random.default_rng(seed)
    by_bucket: dict[int, list[Example]] = {}
    for example in examples:
        length = next((size for size in buckets if len(example) <= size), buckets[-1])
        by_bucket.setdefault(length, []).append(example)
    while True:
        batches = []
        for length, group in by_bucket.items():
            count = max(batch_tokens // length, 1)
            chosen = order.permutation(len(group))
            padded = np.resize(chosen, -(-len(group) // count) * count)
            batches += [(length, rows) for rows in padded.reshape(-1, count)]
        for index in order.permutation(len(batches)):
            length, rows = batches[index]
            group = by_bucket[length]
            yield collate([group[row] for row in rows], seq_length=length)
