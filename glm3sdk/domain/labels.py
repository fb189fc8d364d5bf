"""Which tokens of a conversation are trained, and where their labels stand.

Labels here are always shifted: `labels[i]` is the token that follows `input_ids[i]`, or
`IGNORED_LABEL`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

IGNORED_LABEL = -100


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


def conversation_labels(
    prefix: Sequence[int], turns: Sequence[Turn], *, eos_id: int
) -> tuple[list[int], list[int]]:
    """Join turns into one training sequence.

    The tokens of a trained turn are labels, and so is the token that opens whatever follows
    it: the next role token, or `</s>` at the end. A role token after a turn that is not
    trained is not a label.

    Args:
        prefix: `[gMASK] sop`.
        turns: the conversation.
        eos_id: id of `</s>`, put at the end after a trained turn.

    Returns:
        input_ids `[T]` and labels `[T]`, already shifted.
    """
    tokens, counted = list(prefix), [False] * len(prefix)
    after_trained = False
    for turn in turns:
        tokens += [turn.role_id, *turn.input_ids]
        counted += [after_trained, *([turn.trained] * len(turn.input_ids))]
        after_trained = turn.trained
    if after_trained:
        tokens.append(eos_id)
        counted.append(True)
    following = zip(tokens[1:], counted[1:], strict=True)
    labels = [token if count else IGNORED_LABEL for token, count in following]
    return tokens, [*labels, IGNORED_LABEL]
