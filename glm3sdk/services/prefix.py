"""Which slot a prompt goes to, so that as little as possible is read twice."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

# Copying a prefix costs a call to the device; a shorter one is as quickly read again.
WORTH_COPYING = 16


@attrs.define
class CachedSequence:
    """What one slot of the kv_cache holds.

    Attributes:
        slot: its index.
        token_ids: the tokens whose keys and values it holds, in order.
        prompt_length: tokens of the last prompt that it was given.
        last_used: a counter that grows with each use; 0 means never.
        busy: whether a request is running in it.
    """

    slot: int
    token_ids: list[int] = attrs.field(factory=list)
    prompt_length: int = 0
    last_used: int = 0
    busy: bool = False

    def forget(self) -> None:
        """Count on nothing that the slot holds."""
        self.token_ids, self.prompt_length = [], 0


@attrs.frozen
class Placement:
    """Where a prompt goes.

    Attributes:
        target: the slot that takes it.
        source: the slot whose prefix is copied there first, or None.
        keep: tokens of the prompt whose kv_cache is reused.
    """

    target: CachedSequence
    source: CachedSequence | None
    keep: int


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal ids with which both begin."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))


def place(prompt_ids: Sequence[int], sequences: Sequence[CachedSequence]) -> Placement:
    """Choose a free slot for a prompt; at least one must be free.

    A conversation stays in its slot: one whose whole last prompt the new prompt repeats.
    Otherwise the slot that was idle longest is taken, and a prefix that another slot
    holds, such as a common system message, is copied from it.
    """
    shared = {each.slot: common_prefix(each.token_ids, prompt_ids) for each in sequences}
    free = [each for each in sequences if not each.busy]
    own = [each for each in free if shared[each.slot] >= each.prompt_length]
    target = min(own or free, key=lambda each: (-shared[each.slot] if own else 0, each.last_used))
    longest = max(sequences, key=lambda each: shared[each.slot])
    copies = shared[longest.slot] >= shared[target.slot] + WORTH_COPYING
    # The last token is always read: its logits choose the reply's first token.
    keep = min(shared[longest.slot if copies else target.slot], len(prompt_ids) - 1)
    return Placement(target, longest if copies else None, keep)
