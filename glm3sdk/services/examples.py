"""From records to batches of training sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np

from glm3sdk.domain.chat import Message
from glm3sdk.domain.dataset import Conversation
from glm3sdk.domain.labels import (
    IGNORED_LABEL,
    Run,
    Turn,
    join_turns,
    shifted_labels,
)
from glm3sdk.domain.prompt import GENERATION_PREFIX
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.encoding import encode_message, encode_segments

EOS_ID = 2
PAD_ID = 0


@attrs.frozen
class Example:
    """One training sequence.

    Attributes:
        input_ids: `[T]`.
        learned: runs of positions whose token is learned.
        cut_off: tokens of the record that did not fit.
    """

    input_ids: tuple[int, ...]
    learned: tuple[Run, ...]
    cut_off: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def labels(self) -> tuple[int, ...]:
        """`[T]`, already shifted; -100 where nothing is learned."""
        return tuple(shifted_labels(self.input_ids, self.learned))

    @property
    def learned_tokens(self) -> int:
        """How many labels count."""
        total = 0
        for start, stop in self.learned:
            total += stop - start
        return total

    def cut(self, length: int | None) -> Example:
        """Keep the first `length` tokens; None keeps all.

        The last label is then masked, for the token that it named was cut off.
        """
        if length is None or len(self) <= length:
            return self
        kept = ((start, min(stop, length)) for start, stop in self.learned if start < length)
        cut_off = self.cut_off + len(self) - length
        return Example(self.input_ids[:length], tuple(kept), cut_off)


def encode_training(conversation: Conversation, tokenizer: Tokenizer) -> Example:
    """Encode a conversation for training; its turns say what is learned."""
    turns = []
    for entry in conversation.messages:
        role_id, *input_ids = encode_message(entry.message, tokenizer)
        turns.append(Turn(role_id, tuple(input_ids), entry.trained))
    prefix = encode_segments(GENERATION_PREFIX, tokenizer)
    input_ids, learned = join_turns(prefix, turns, eos_id=EOS_ID)
    return Example(tuple(input_ids), tuple(learned))


def encode_conversation(messages: Iterable[Message], tokenizer: Tokenizer) -> Example:
    """Encode messages for training: every assistant turn is learned."""
    return encode_training(Conversation.of(messages), tokenizer)


def join(examples: Iterable[Example]) -> Example:
    """Put examples behind one another in one sequence.

    Each begins with its own `[gMASK] sop`, whose first token is never learned: nothing is
    learned across a border.
    """
    input_ids: list[int] = []
    learned: list[Run] = []
    cut_off = 0
    for example in examples:
        before = len(input_ids)
        input_ids += example.input_ids
        learned += ((before + start, before + stop) for start, stop in example.learned)
        cut_off += example.cut_off
    return Example(tuple(input_ids), tuple(learned), cut_off)


def collate(
    examples: Sequence[Example], *, seq_length: int, batch_size: int | None = None
) -> TokenBatch:
    """Pad examples on the right to `seq_length`; longer ones are cut.

    Args:
        examples: the sequences.
        seq_length: tokens of each row.
        batch_size: rows; those beyond the examples are padding without labels.
    """
    rows = len(examples) if batch_size is None else batch_size
    input_ids = np.full((rows, seq_length), PAD_ID, dtype=np.int32)
    labels = np.full((rows, seq_length), IGNORED_LABEL, dtype=np.int32)
    for row, example in enumerate(examples):
        kept = example.cut(seq_length)
        input_ids[row, : len(kept)] = kept.input_ids
        for start, stop in kept.learned:
            labels[row, start - 1 : stop - 1] = input_ids[row, start:stop]
    return TokenBatch(input_ids=input_ids, labels=labels)


def bucketed_epoch(
    examples: Sequence[Example], *, buckets: Sequence[int], batch_tokens: int, seed: int
) -> Iterator[TokenBatch]:
    """Yield the batches of one epoch, each padded to the smallest bucket that holds it.

    A graph is compiled for each bucket's length, so padding costs little and there are few
    graphs. Each example comes once, in an order that the seed decides; a batch that lacks
    examples is filled up with ones that come again.

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
