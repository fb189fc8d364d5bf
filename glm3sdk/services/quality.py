"""How near a model's logits come to another's, such as a quantised model's to the original's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.errors import InvalidDatasetError, NonFiniteLogitsError
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.training import TokenBatch


@attrs.frozen(kw_only=True)
class Agreement:
    """What was found over all tokens that are learned.

    Attributes:
        tokens: how many there are.
        mean_kl: mean Kullback-Leibler divergence of the reference's distribution from the
            model's, in nats.
        top_1: share of tokens where both find the same one the likeliest.
        margin: where they do not, the most that the reference's logit of its own likeliest token
            stands above that of the model's; 0 where they always do.
        loss: mean loss of the model.
        reference_loss: mean loss of the reference.
    """

    tokens: int
    mean_kl: float
    top_1: float
    margin: float
    loss: float
    reference_loss: float

    @property
    def perplexity_change(self) -> float:
        """The model's perplexity over the reference's, less 1."""
        return math.expm1(min(self.loss - self.reference_loss, 700.0))

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**attrs.asdict(self), "perplexity_change": self.perplexity_change}


def learned_logits(
    runtime: ModelRuntime, batches: Iterable[TokenBatch]
) -> Iterator[tuple[FloatArray, IntArray]]:
    """The logits `[N, V]` of each sequence's learned tokens, and those tokens `[N]`.

    Args:
        runtime: a loaded model.
        batches: sequences of one length; those without labels are left out.
    """
    session = None
    for batch in batches:
        if session is None:
            length = batch.input_ids.shape[1]
            session = runtime.start_decode(slots=1, max_seq_length=length)
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            learned = np.flatnonzero(labels != IGNORED_LABEL)
            if len(learned):
                session.truncate(0, 0)
                rows = session.prefill(0, ids[: learned[-1] + 1], all_logits=True)
                yield rows[learned], labels[learned]
    if session is not None:
        session.close()


def compare(pairs: Iterable[tuple[FloatArray, FloatArray, IntArray]]) -> Agreement:
    """Compare logits, some tokens at a time.

    Args:
        pairs: the model's logits `[N, V]`, the reference's `[N, V]`, and the tokens `[N]`.

    Raises:
        InvalidDatasetError: there are no tokens.
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    tokens = same = 0
    divergence = loss = reference_loss = margin = 0.0
    for logits, reference, targets in pairs:
        ours, theirs = _log_softmax(logits), _log_softmax(reference)
        at = np.arange(len(targets))
        tokens += len(targets)
        divergence += float((np.exp(theirs) * (theirs - ours)).sum())
        chosen = ours.argmax(axis=1)
        same += int((chosen == theirs.argmax(axis=1)).sum())
        margin = max(margin, float((theirs.max(axis=1) - theirs[at, chosen]).max(initial=0)))
        loss -= float(ours[at, targets].sum())
        reference_loss -= float(theirs[at, targets].sum())
    if not tokens:
        raise InvalidDatasetError("there is nothing to compare; pass a record with a trained turn")
    return Agreement(
        tokens=tokens,
        mean_kl=divergence / tokens,
        top_1=same / tokens,
        margin=margin,
        loss=loss / tokens,
        reference_loss=reference_loss / tokens,
    )


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise NonFiniteLogitsError(
            "the model returned logits that are not finite; check the checkpoint"
        )
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
