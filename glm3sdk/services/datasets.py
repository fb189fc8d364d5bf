"""A data file as training sequences that can be asked for by number."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from glm3sdk.config.schema import DataSettings
from glm3sdk.domain.dataset import Dropped
from glm3sdk.errors import InvalidDatasetError
from glm3sdk.ports.line_source import Line, LineSource
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.examples import Example, collate, join
from glm3sdk.services.preflight import (
    DatasetReport,
    Tally,
    encoded_lines,
    require_multiple,
    require_vocabulary,
)
from glm3sdk.services.record_layout import RecordEncoder, training_layout

CACHED_TOKENS = 16 * 1024 * 1024
"""Tokens that a dataset keeps encoded: 64 MiB, more than AdvertiseGen's training file has."""

log = logging.getLogger(__name__)


class Dataset:
    """Training sequences of a data file, each `seq_length` tokens in a batch.

    A small file stays encoded in memory; of a large one only the places of its records do,
    and each is read and encoded when it is asked for. Make one with `open_dataset`.

    Attributes:
        report: what preflight found.
        seq_length: tokens of each row of a batch.
    """

    def __init__(
        self,
        *,
        report: DatasetReport,
        seq_length: int,
        records: _EncodedRecords | _FileRecords,
        packs: npt.NDArray[np.int64] | None,
    ) -> None:
        self.report, self.seq_length = report, seq_length
        self._records, self._packs = records, packs

    def __len__(self) -> int:
        """Sequences: records, or packs of them."""
        return len(self._records) if self._packs is None else len(self._packs) - 1

    def example(self, index: int) -> Example:
        """One sequence, without padding.

        Raises:
            InvalidDatasetError: the file cannot be read any more, or has changed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        if self._packs is None:
            return self._records.example(index)
        first, after = self._packs[index : index + 2].tolist()
        return join(self._records.example(record) for record in range(first, after))

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, batch_size: int | None = None
    ) -> TokenBatch:
        """Sequences as one batch, `[B, seq_length]`.

        Args:
            indices: which sequences.
            batch_size: rows; those beyond the indices are padding without labels.

        Raises:
            InvalidDatasetError: the file cannot be read any more, or has changed.
        """
        examples = [self.example(int(index)) for index in indices]
        return collate(examples, seq_length=self.seq_length, batch_size=batch_size)

    def in_order(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[TokenBatch]:
        """Every sequence once in the file's order, as batches of one shape for evaluation.

        What the last batch lacks is padding that has no labels.

        Args:
            batch_size: rows of each.
            rank: of `world` that share the batches out; each gets every `world`-th one, and all
                get the same number of them.
            world: how many share them out.
        """
        for first in range(0, len(self), world * batch_size):
            start = first + rank * batch_size
            indices = range(start, min(start + batch_size, len(self)))
            yield self.batch(indices, batch_size=batch_size)


def open_dataset(
    source: LineSource,
    settings: DataSettings,
    tokenizer: Tokenizer,
    *,
    seq_length: int | None = None,
    padded_vocab_size: int | None = None,
    multiple_of: int = 1,
    max_records: int | None = None,
    keep_masked: bool = False,
    cached_tokens: int = CACHED_TOKENS,
) -> Dataset:
    """Check a whole data file (preflight) and open it for training.

    With `settings.pack`, records that follow one another in the file share a sequence as
    long as they fit whole. Neither attention nor positions start anew between them, for the
    model's graph takes token ids alone: a later record sees the earlier ones as context.

    Args:
        source: the file.
        settings: how it is read.
        tokenizer: the model's tokenizer.
        seq_length: the run's sequence length, where it names one.
        padded_vocab_size: rows of the model's embedding, to check the tokenizer against.
        multiple_of: what the sequence length must be a multiple of.
        max_records: use no more records than these, from the first.
        keep_masked: keep records of which no token is trained; else they are left out.
        cached_tokens: most tokens that stay encoded in memory.

    Raises:
        InvalidDatasetError: lengths that do not fit, or no record to train on.
        InvalidTokenizerError: the tokenizer has ids that the model has not.
    """
    layout = training_layout(settings, seq_length=seq_length)
    length = layout.seq_length
    assert length is not None  # noqa: S101 - a training layout has every length
    require_multiple(length, multiple_of)
    if padded_vocab_size is not None:
        require_vocabulary(tokenizer, padded_vocab_size)
    encoder = RecordEncoder(layout, tokenizer)
    tally, places, lengths = Tally(source.name, length), array("q"), array("q")
    encoded: _EncodedRecords | None = _EncodedRecords()
    for line, example, trained in encoded_lines(source, encoder, tally):
        if trained or keep_masked:
            places.extend((line.number, line.offset, line.size))
            lengths.append(len(example))
            if encoded is not None and not encoded.add(example, cached_tokens):
                encoded = None
        if len(lengths) == max_records:
            break
    report = tally.report()
    if not (keep_masked and report.taken):
        report.require_records()
    for problem in report.problems():
        log.warning("%s", problem)
    return Dataset(
        report=report,
        seq_length=length,
        records=encoded or _FileRecords(source, encoder, places),
        packs=_packs(lengths, length) if settings.pack else None,
    )


class _EncodedRecords:
    """Records in memory, one behind the other."""

    def __init__(self) -> None:
        self._input_ids, self._token_starts = array("i"), array("q", [0])
        self._learned, self._run_starts = array("i"), array("q", [0])

    def add(self, example: Example, most: int) -> bool:
        """Append a record unless there are `most` tokens then; returns whether it did."""
        if self._token_starts[-1] + len(example) > most:
            return False
        self._input_ids.fromlist(list(example.input_ids))  # twice as fast as extend
        self._token_starts.append(len(self._input_ids))
        for start, stop in example.learned:
            self._learned.append(start)
            self._learned.append(stop)
        self._run_starts.append(len(self._learned))
        return True

    def __len__(self) -> int:
        return len(self._token_starts) - 1

    def example(self, index: int) -> Example:
        input_ids = self._input_ids[self._token_starts[index] : self._token_starts[index + 1]]
        runs = self._learned[self._run_starts[index] : self._run_starts[index + 1]]
        return Example(tuple(input_ids), tuple(zip(runs[::2], runs[1::2], strict=True)))


class _FileRecords:
    """Records that are read from the file each time."""

    def __init__(self, source: LineSource, encoder: RecordEncoder, places: Sequence[int]) -> None:
        self._source, self._encoder = source, encoder
        self._places = np.asarray(places, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def example(self, index: int) -> Example:
        number, offset, size = self._places[index].tolist()
        line = Line(number, offset, size, self._source.read(offset, size))
        example = self._encoder.encode(line)
        if isinstance(example, Dropped):
            raise InvalidDatasetError(
                f"{self._source.name}:{number}: the record has changed since the run began "
                f"({example.reason}); start again and leave the file alone"
            )
        return example


def _packs(lengths: Sequence[int], seq_length: int) -> npt.NDArray[np.int64]:
    """The first record of each pack, and the end."""
    starts, filled = [0], 0
    for record, length in enumerate(lengths):
        if filled + length > seq_length:
            starts.append(record)
            filled = 0
        filled += length
    return np.array([*starts, len(lengths)], dtype=np.int64)
