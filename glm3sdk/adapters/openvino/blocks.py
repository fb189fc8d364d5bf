"""Which blocks of a paged kv_cache each slot's tokens lie in. Plain Python.

Slots share the blocks of a common prefix. A block that is about to be written to and that
another slot holds too is replaced by a copy first.
"""

from __future__ import annotations

from collections.abc import Sequence

Copies = list[tuple[int, int]]
"""Blocks whose content is to be copied before it is used: from, to."""


class BlockTables:
    """The blocks of some slots.

    Args:
        slots: how many there are.
        max_seq_length: most tokens of a slot.
        block_tokens: tokens that a block holds.

    Attributes:
        total: blocks that the cache needs. There is always one free: together the slots hold
            no more than that many, counting a shared one for each.
    """

    def __init__(self, *, slots: int, max_seq_length: int, block_tokens: int) -> None:
        self._size = block_tokens
        self.total = slots * self._count(max_seq_length)
        self._free = list(range(self.total - 1, -1, -1))
        self._holders = [0] * self.total
        self._tables: list[list[int]] = [[] for _ in range(slots)]

    def of(self, slot: int, length: int) -> Sequence[int]:
        """The blocks of a slot's first `length` tokens."""
        return self._tables[slot][: self._count(length)]

    def reserve(self, slot: int, length: int, more: int) -> Copies:
        """Have blocks of the slot's own for `more` tokens behind its first `length`."""
        table = self._tables[slot]
        self.truncate(slot, length)
        copies: Copies = []
        if length % self._size and self._holders[table[-1]] > 1:
            shared = table.pop()
            table.append(self._take())
            self._holders[shared] -= 1
            copies.append((shared, table[-1]))
        while len(table) < self._count(length + more):
            table.append(self._take())
        return copies

    def truncate(self, slot: int, length: int) -> None:
        """Give back the blocks behind the slot's first `length` tokens."""
        table = self._tables[slot]
        while len(table) > self._count(length):
            self._give_back(table.pop())

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the blocks of the first `length` tokens of `source` too."""
        shared = list(self.of(source, length))
        for block in shared:
            self._holders[block] += 1
        self.truncate(target, 0)
        self._tables[target] = shared

    def _count(self, tokens: int) -> int:
        return -(-tokens // self._size)

    def _take(self) -> int:
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _give_back(self, block: int) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            self._free.append(block)
