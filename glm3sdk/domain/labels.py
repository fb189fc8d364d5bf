"""Which tokens of a sequence are learned, and where their labels stand.

Labels here are always shifted: `labels[i]` is the token that follows `input_ids[i]`, or
`IGNORED_LABEL`. So runs of learned positions tell all labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

IGNORED_LABEL = -100

Run = tuple[int, int]
"""Positions `[start, stop)` of tokens that are learned; the first token never is."""


@attrs.frozen
class Turn:
    """One encoded message of a training conversation.

    Attributes:
        input_ids: the message's tokens after its role token.
        role_id: the role token that opens it.
        trained: whether the model learns to write it (assistant turns).
    """

    role_id: int
    input_ids: tuple[int, ...]
    trained: bool


def join_turns(
    prefix: Sequence[int], turns: Sequence[Turn], *, eos_id: int
) -> tuple[list[int], list[Run]]:
    """Join turns into one training sequence.

    The tokens of a trained turn are learned, and so is the token that opens whatever follows
    it: the next role token, or `</s>` at the end. What opens a turn after one that is not
    trained is not learned.

    Args:
        prefix: `[gMASK] sop`.
        turns: the conversation.
        eos_id: id of `</s>`, which ends the sequence.

    Returns:
        input_ids `[T]` and the runs that are learned.
    """
    tokens, learned = list(prefix), []
    for turn in turns:
        tokens.append(turn.role_id)
        start = len(tokens)
        tokens += turn.input_ids
        if turn.trained:
            learned.append((start, len(tokens) + 1))
    tokens.append(eos_id)
    return tokens, learned


def shifted_labels(input_ids: Sequence[int], learned: Sequence[Run]) -> list[int]:
    """The labels `[T]` of a sequence, already shifted."""
    labels = [IGNORED_LABEL] * len(input_ids)
    for start, stop in learned:
        labels[start - 1 : stop - 1] = input_ids[start:stop]
    return labels
