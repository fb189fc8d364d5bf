"""What every decode session checks: slots, lengths and token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import ServiceClosedError, SlotError
from glm3sdk.ports.arrays import IntArray


class SlotTable:
    """How many tokens each slot of a session holds, and what may be done next.

    The `check_*` methods change nothing, so that a session can check, compute and only
    then record; a computation that fails leaves every length as it was.

    Raises:
        SlotError: less than one slot, or a length outside 1..config.seq_length.
    """

    def __init__(self, config: Glm3Config, *, slots: int, max_seq_length: int) -> None:
        self.slots = _integer("slots", slots)
        self.max_seq_length = _integer("max_seq_length", max_seq_length)
        self._vocab_size = config.padded_vocab_size
        if self.slots < 1:
            raise SlotError(f"slots={slots}: a session needs at least 1")
        if not 1 <= self.max_seq_length <= config.seq_length:
            raise SlotError(
                f"max_seq_length={max_seq_length} is outside 1..{config.seq_length}, "
                "the model's seq_length"
            )
        self._lengths = [0] * self.slots
        self._closed = False

    def check_open(self) -> None:
        """Raise ServiceClosedError if the session was closed."""
        if self._closed:
            raise ServiceClosedError("this decode session was closed; start another one")

    def close(self) -> None:
        """Refuse every further call; closing twice is fine."""
        self._closed = True

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._lengths[self._slot(slot)]

    def check_prefill(self, slot: int, input_ids: Sequence[int] | IntArray) -> tuple[int, IntArray]:
        """Check tokens `[T]` that are about to be appended to a slot.

        Returns:
            The slot as a plain integer and the ids `[T]`.
        """
        slot = self._slot(slot)
        ids = self._ids(input_ids)
        self._check_room(slot, len(ids))
        return slot, ids

    def check_decode(
        self, slots: Sequence[int], token_ids: Sequence[int] | IntArray
    ) -> tuple[tuple[int, ...], IntArray]:
        """Check one token for each of B different slots.

        Returns:
            The slots as plain integers and the ids `[B]`.
        """
        chosen = tuple(self._slot(slot) for slot in slots)
        ids = self._ids(token_ids)
        if len(chosen) != len(ids):
            raise SlotError(f"{len(chosen)} slots and {len(ids)} token ids; pass one id a slot")
        for slot in chosen:
            if chosen.count(slot) > 1:
                raise SlotError(f"slot {slot} is named twice in {list(chosen)}; name it once")
            self._check_room(slot, 1)
        return chosen, ids

    def advance(self, slot: int, tokens: int) -> None:
        """Record that `tokens` tokens were appended to a slot."""
        self._lengths[slot] += tokens

    def truncate(self, slot: int, length: int) -> None:
        """Record that a slot forgot all but its first `length` tokens."""
        slot = self._slot(slot)
        self._lengths[slot] = self._kept(slot, length)

    def check_copy(self, source: int, target: int, length: int) -> tuple[int, int, int]:
        """Check that `target` can be given the first `length` tokens of `source`."""
        source, target = self._slot(source), self._slot(target)
        return source, target, self._kept(source, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Record that `target` holds the first `length` tokens of `source`."""
        _, target, length = self.check_copy(source, target, length)
        self._lengths[target] = length

    def _slot(self, slot: int) -> int:
        self.check_open()
        index = _integer("slot", slot)
        if not 0 <= index < self.slots:
            raise SlotError(f"slot {slot} is outside 0..{self.slots - 1}")
        return index

    def _ids(self, values: Sequence[int] | IntArray) -> IntArray:
        self.check_open()
        try:
            ids = np.asarray(values)
        except ValueError as exc:
            raise SlotError(f"token ids must be a row of integers: {exc}") from exc
        if ids.size == 0:
            raise SlotError("there are no token ids; pass at least one")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise SlotError(
                f"token ids must be a row of integers, not {ids.dtype} of shape {list(ids.shape)}"
            )
        outside = ids[(ids < 0) | (ids >= self._vocab_size)]
        if outside.size:
            raise SlotError(f"token id {outside[0]} is outside 0..{self._vocab_size - 1}")
        return ids.astype(np.int32)

    def _kept(self, slot: int, length: int) -> int:
        kept = _integer("length", length)
        if not 0 <= kept <= self._lengths[slot]:
            raise SlotError(
                f"length={length} is outside 0..{self._lengths[slot]}, what slot {slot} holds"
            )
        return kept

    def _check_room(self, slot: int, tokens: int) -> None:
        held = self._lengths[slot]
        if held + tokens > self.max_seq_length:
            raise SlotError(
                f"slot {slot} holds {held} of at most {self.max_seq_length} tokens and has no "
                f"room for {tokens} more; truncate it or start a longer session"
            )


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what is no integer is caught here
    except TypeError as exc:
        raise SlotError(f"{name} must be an integer, not {value!r}") from exc
