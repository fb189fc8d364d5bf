"""Which records each step trains on: a pure function of seed and step.

So a resumed run needs to know its step and nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

_WORD = 2**64

Indices: TypeAlias = npt.NDArray[np.int64]


@attrs.frozen(kw_only=True)
class DataOrder:
    """The order of records over all epochs, shared out among data-parallel ranks.

    The epochs' permutations follow one another as one endless stream, of which a step takes
    the next `world * accumulate * batch_size` records: every record comes exactly once an
    epoch, on one rank, none is dropped and none repeated to fill a batch. Where an epoch
    is no whole number of steps, one step takes its last records and the first of the next
    epoch. How a step is split into ranks and micro-batches does not change its records.

    Attributes:
        records: how many there are.
        batch_size: records of a micro-batch on one rank.
        accumulate: micro-batches of one optimizer step.
        rank: this data-parallel rank.
        world: data-parallel ranks.
        seed: of the permutations.
        shuffle: False keeps the file's order in every epoch.

    Raises:
        ValueError: a number that cannot be.
    """

    records: int = attrs.field(validator=attrs.validators.ge(1))
    batch_size: int = attrs.field(validator=attrs.validators.ge(1))
    accumulate: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    world: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    rank: int = attrs.field(default=0)
    seed: int = 0
    shuffle: bool = True

    @rank.validator
    def _check_rank(self, _: attrs.Attribute[int], value: int) -> None:
        if not 0 <= value < self.world:
            raise ValueError(f"rank {value} is not one of {self.world}")

    @property
    def step_records(self) -> int:
        """Records of one optimizer step over all ranks."""
        return self.world * self.accumulate * self.batch_size

    def steps(self, epochs: int) -> int:
        """Optimizer steps until every record was seen `epochs` times."""
        return -(-self.records * epochs // self.step_records)

    def epoch(self, step: int) -> float:
        """Epochs done before a step."""
        return step * self.step_records / self.records

    def batch(self, index: int) -> Indices:
        """The records of this rank's micro-batch number `index`, counted from 0: `[B]`."""
        share = self.batch_size * self.world
        start = index * share + self.rank * self.batch_size
        positions = np.arange(start, start + self.batch_size, dtype=np.int64)
        if not self.shuffle:
            return positions % self.records
        epochs, places = np.divmod(positions, self.records)
        orders = {int(epoch): self._order(int(epoch)) for epoch in np.unique(epochs)}
        chosen = [orders[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)]
        return np.array(chosen, dtype=np.int64)

    def micro_batches(self, step: int) -> tuple[Indices, ...]:
        """The records of this rank's micro-batches in optimizer step `step`, from 0."""
        first = step * self.accumulate
        return tuple(self.batch(first + number) for number in range(self.accumulate))

    def _order(self, epoch: int) -> Indices:
        return _permutation(self.records, self.seed, epoch)


@lru_cache(maxsize=4)
def _permutation(records: int, seed: int, epoch: int) -> Indices:
    # Raw output of a bit generator is the same in every numpy; a Generator's permutation
    # may change with the version, and a run could then not be resumed.
    words = np.random.Philox(key=np.array([seed % _WORD, epoch], dtype=np.uint64))
    order = np.argsort(words.random_raw(records), kind="stable")
    order.setflags(write=False)
    return order
