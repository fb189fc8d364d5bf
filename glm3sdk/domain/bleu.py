"""BLEU-4 of one text (Papineni et al. 2002), smoothed so that short texts have a score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_ORDERS = (1, 2, 3, 4)


def bleu_4(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """The BLEU-4 of a prediction, from 0 to 1.

    The geometric mean of the precisions of 1- to 4-grams, times the brevity penalty. The
    first order without a match counts half a match, the next a quarter and so on: NIST's
    smoothing (method 3 of Chen and Cherry 2014), which the published figures were made
    with. So a text of fewer than 4 tokens stays below 1 even where it is the reference.

    Args:
        prediction: the tokens of what the model wrote: words or characters.
        reference: the tokens of what it should have written.
    """
    if not set(prediction) & set(reference):
        return 0.0
    log_precisions, misses = 0.0, 0
    for order in _ORDERS:
        counts = _ngrams(prediction, order)
        matches = (counts & _ngrams(reference, order)).total()
        misses += not matches
        log_precisions += math.log((matches or 0.5**misses) / (counts.total() or 1))
    # 0 where the prediction is no shorter than the reference.
    log_penalty = min(1 - len(reference) / len(prediction), 0.0)
    return math.exp(log_penalty + log_precisions / len(_ORDERS))


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
