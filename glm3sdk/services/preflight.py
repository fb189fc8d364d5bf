"""What a data file holds, told before the first step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from glm3sdk.domain.dataset import DropKind, Dropped
from glm3sdk.errors import InvalidDatasetError, InvalidTokenizerError
from glm3sdk.ports.line_source import Line, LineSource
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.examples import Example
from glm3sdk.services.record_layout import RecordEncoder, RecordLayout

# Enough to find the mistake, and a file of nothing else fills no screen.
_NAMED_LINES = 5


@attrs.frozen
class LengthSummary:
    """How long a set of texts is, in tokens (or characters, where the owner says so)."""

    min: int = 0
    median: int = 0
    p90: int = 0
    p99: int = 0
    max: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int]) -> LengthSummary:
        """Summarise lengths; every figure is one of them (nearest rank)."""
        if not lengths:
            return cls()
        ranks = np.percentile(
            np.asarray(lengths), [0, 50, 90, 99, 100], method="inverted_cdf"
        ).tolist()
        return cls(*map(int, ranks))

    def __str__(self) -> str:
        return (
            f"min {self.min}, median {self.median}, p90 {self.p90}, p99 {self.p99}, max {self.max}"
        )


@attrs.frozen
class DropCount:
    """Lines dropped for one kind of reason: how many, and the first of them."""

    kind: DropKind
    count: int
    first: tuple[Dropped, ...]


@attrs.frozen(kw_only=True)
class DatasetReport:
    """What a data file holds.

    Attributes:
        name: the file.
        taken: records that can be encoded.
        dropped: lines that cannot, by kind, the commonest first.
        lengths: tokens of the records, before they are cut or padded.
        seq_length: tokens to which each is padded, or None.
        truncated: records that lost tokens.
        masked: records of which no token is trained.
        masked_lines: the first of their line numbers.
        tokens: tokens of all records that are left after cutting.
        trained_tokens: labels that count.
    """

    name: str
    taken: int
    dropped: tuple[DropCount, ...]
    lengths: LengthSummary
    seq_length: int | None
    truncated: int
    masked: int
    masked_lines: tuple[int, ...]
    tokens: int
    trained_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        value = attrs.asdict(self, value_serializer=lambda _, __, item: _plain(item))
        return {**value, "truncated_share": _share(self.truncated, self.taken)}

    def problems(self) -> Iterator[str]:
        """Each thing that a person should know, one line each, with file and line."""
        for group in self.dropped:
            for dropped in group.first:
                yield f"{self.name}:{dropped.line}: dropped: {dropped.reason}"
            if group.count > len(group.first):
                more = group.count - len(group.first)
                yield f"{self.name}: {more} more lines dropped: {group.kind}"
        for line in self.masked_lines:
            yield f"{self.name}:{line}: no token of this record is trained"
        if self.masked > len(self.masked_lines):
            more = self.masked - len(self.masked_lines)
            yield f"{self.name}: {more} more records of which no token is trained"

    def require_records(self) -> None:
        """Check that there is something to train on.

        Raises:
            InvalidDatasetError: no record can be used; the message has the first reasons.
        """
        if self.taken > self.masked:
            return
        reasons = "; ".join(self.problems()) or "the file is empty"
        raise InvalidDatasetError(f"{self.name} holds no record to train on: {reasons}")


class Tally:
    """Counts records while they stream by."""

    def __init__(self, name: str, seq_length: int | None) -> None:
        self._name, self._seq_length = name, seq_length
        self._lengths = array("i")
        self._truncated = self._tokens = self._trained = self._masked = 0
        self._masked_lines: list[int] = []
        self._dropped: dict[DropKind, list[Dropped]] = {}
        self._drop_counts: dict[DropKind, int] = {}

    def take(self, line: int, example: Example) -> bool:
        """Count a record; returns whether any of its tokens is trained."""
        kept, trained = len(example), example.learned_tokens
        self._lengths.append(kept + example.cut_off)
        self._truncated += example.cut_off > 0
        self._tokens += kept
        self._trained += trained
        if not trained:
            self._masked += 1
            if len(self._masked_lines) < _NAMED_LINES:
                self._masked_lines.append(line)
        return bool(trained)

    def drop(self, dropped: Dropped) -> None:
        """Count a line that is no record."""
        first = self._dropped.setdefault(dropped.kind, [])
        if len(first) < _NAMED_LINES:
            first.append(dropped)
        self._drop_counts[dropped.kind] = self._drop_counts.get(dropped.kind, 0) + 1

    def report(self) -> DatasetReport:
        """What was counted so far."""
        counts = sorted(self._drop_counts.items(), key=lambda item: -item[1])
        return DatasetReport(
            name=self._name,
            taken=len(self._lengths),
            dropped=tuple(DropCount(k, n, tuple(self._dropped[k])) for k, n in counts),
            lengths=LengthSummary.of(self._lengths),
            seq_length=self._seq_length,
            truncated=self._truncated,
            masked=self._masked,
            masked_lines=tuple(self._masked_lines),
            tokens=self._tokens,
            trained_tokens=self._trained,
        )


def encoded_lines(
    source: LineSource, encoder: RecordEncoder, tally: Tally
) -> Iterator[tuple[Line, Example, bool]]:
    """Yield every record of a file with its line, and whether any of its tokens is trained.

    Raises:
        InvalidDatasetError: the file cannot be read.
    """
    for line in source.lines():
        example = encoder.encode(line)
        if isinstance(example, Dropped):
            tally.drop(example)
        else:
            yield line, example, tally.take(line.number, example)


def inspect_dataset(
    source: LineSource, layout: RecordLayout, tokenizer: Tokenizer
) -> DatasetReport:
    """Read a whole file and report on it, keeping none of it.

    Raises:
        InvalidDatasetError: the file cannot be read.
    """
    tally = Tally(source.name, layout.seq_length)
    for _ in encoded_lines(source, RecordEncoder(layout, tokenizer), tally):
        pass
    return tally.report()


def require_vocabulary(tokenizer: Tokenizer, padded_vocab_size: int) -> None:
    """Check that every id of the tokenizer is a row of the model's embedding.

    Raises:
        InvalidTokenizerError: some are not.
    """
    if tokenizer.vocab_size > padded_vocab_size:
        raise InvalidTokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model has room for "
            f"{padded_vocab_size}; use the tokenizer.model that belongs to the model"
        )


def require_multiple(seq_length: int, multiple: int) -> None:
    """Check that a sequence length suits the runtime (16 for flash attention on Ascend).

    Raises:
        InvalidDatasetError: it does not.
    """
    if seq_length % multiple:
        lower = seq_length - seq_length % multiple
        raise InvalidDatasetError(
            f"seq_length {seq_length} is not a multiple of {multiple}, which this runtime needs; "
            f"use {lower or multiple} or {lower + multiple}"
        )


def _plain(item: Any) -> Any:
    return str(item) if isinstance(item, DropKind) else item


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
