"""A reply under a constraint: for the sampler, for the loop, and for who reads the tokens."""

from __future__ import annotations

import numpy as np

from glm3sdk.ports.arrays import BoolArray
from glm3sdk.ports.constraint import ConstraintState


class TokenConstraint:
    """Tells which tokens may come next, the ids that end the reply among them.

    Args:
        state: what was written so far.
        vocab_size: ids that stand for something.
        stop_ids: ids that end the reply; allowed where what was written is complete.
        fast_forward: whether forced tokens are told at once.
    """

    def __init__(
        self,
        state: ConstraintState,
        *,
        vocab_size: int,
        stop_ids: frozenset[int],
        fast_forward: bool = True,
    ) -> None:
        self._state = state
        self._allowed = np.empty(vocab_size, np.bool_)
        self._stop_ids = [token_id for token_id in stop_ids if token_id < vocab_size]
        self._fast_forward = fast_forward

    @property
    def finished(self) -> bool:
        """Whether nothing can follow, so that the reply ends without a token that says so."""
        return self._state.finished

    def choose_each(self) -> None:
        """Tell no forced tokens at once from now on, so that each is chosen from logits."""
        self._fast_forward = False

    def allowed(self) -> BoolArray:
        """Which ids may come next `[V]`; overwritten by the next call."""
        self._state.fill_mask(self._allowed)
        self._allowed[self._stop_ids] = self._state.complete
        return self._allowed

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen, no stop id."""
        self._state.accept(token_id)

    def forced(self, *, most: int) -> list[int]:
        """The ids that must come next, taken as chosen.

        Args:
            most: the most ids that there is room for.
        """
        if not self._fast_forward:
            return []
        forced = list(self._state.forced()[:most])
        for each in forced:
            self._state.accept(each)
        return forced


class StructureCheck:
    """Follows the tokens of a reply to say whether its structure is complete.

    Args:
        state: nothing was written yet; None for a reply without constraint.
    """

    def __init__(self, state: ConstraintState | None) -> None:
        self._state = state
        self._complete_before = False

    def push(self, token_id: int) -> None:
        """Take one more token of the reply."""
        if self._state is not None:
            self._complete_before = self._state.complete
            self._state.accept(token_id)

    def complete(self, *, cut: bool) -> bool:
        """Whether all that was asked for is there.

        Args:
            cut: whether a stop string ended the text within the last token.
        """
        if self._state is None:
            return True
        return self._complete_before if cut else self._state.complete
