"""The port of constrained decoding: which tokens keep a reply within what it may say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from glm3sdk.domain.constraints import Constraint, ToolCalls
from glm3sdk.ports.arrays import BoolArray


class ConstraintState(Protocol):
    """What was written so far of one reply. Used by one thread at a time.

    Ids that end a reply are never allowed here: `complete` says whether one may come.
    """

    @property
    def complete(self) -> bool:
        """Whether what was written is all that the constraint asks for."""

    @property
    def finished(self) -> bool:
        """Whether it is complete and nothing can follow."""

    def fill_mask(self, allowed: BoolArray) -> None:
        """Write which ids of the tokenizer may come next into all of `allowed` `[V]`."""

    def accept(self, token_id: int) -> None:
        """Take an allowed token.

        Raises:
            InvalidConstraintError: it is not allowed, or the grammar became too complex.
        """

    def forced(self) -> Sequence[int]:
        """The ids that must come next, tokenized as the tokenizer would; may be empty.

        The text up to there is forced whatever its tokens are; while there are such ids,
        the first one is all that `fill_mask` allows.
        """


StartConstraint: TypeAlias = Callable[[], ConstraintState]
"""Begins a reply. Any thread may call it, as often as it likes."""


class ConstraintCompiler(Protocol):
    """Prepares constraints for one tokenizer. Contract: `glm3sdk.testing.ConstraintContract`.

    Several threads may use one.
    """

    def compile(self, constraint: Constraint | ToolCalls, *, opening: str = "") -> StartConstraint:
        """Check a constraint and prepare it; a second time it is remembered.

        Args:
            constraint: what is written; `ToolCalls` are whole turns, metadata included.
            opening: text that stands before it, dummy prefix included; none before turns.

        Raises:
            InvalidConstraintError: it cannot be used; the message quotes the place.
            UnsupportedSchemaError: a keyword of a schema cannot be enforced.
            InvalidToolError: a tool has a name that the model cannot call.
            BackendUnavailableError: what compiles it is not installed.
        """
