"""The choice of the next token from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import (
    InvalidConstraintError,
    InvalidGenerationConfigError,
    InvalidTokenizerError,
    NonFiniteLogitsError,
)
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.services.structure import TokenConstraint

_Scores = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]

# Padding and the beginning of text never stand in a reply.
_NEVER = [0, 1]

# How far below the likeliest token (in units of log probability) candidates are sought:
# selecting among the few near the top is far cheaper than ordering a vocabulary.
_DEPTHS = (*map(float, range(1, 17)), 20.0, 32.0, np.inf)


class Sampler:
    """Chooses the tokens of one sequence; not to be shared between threads.

    Each step adds `logit_bias`, bans bad words, applies `repetition_penalty` and the
    minimum lengths, leaves what the constraint allows, then takes the likeliest token or
    draws one.

    Args:
        config: the generation parameters.
        vocab_size: ids that stand for something; logits beyond it are padding.
        stop_ids: ids that end the reply.
        prompt_ids: the prompt's ids `[T]`.
        bad_words_ids: id sequences that must not appear.
        constraint: what the reply is held to; the caller tells it what was chosen.

    Raises:
        InvalidGenerationConfigError: `logit_bias` names an id outside the vocabulary.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        vocab_size: int,
        stop_ids: frozenset[int],
        prompt_ids: Sequence[int],
        bad_words_ids: Sequence[Sequence[int]] = (),
        constraint: TokenConstraint | None = None,
    ) -> None:
        outside = [token_id for token_id in config.logit_bias if token_id >= vocab_size]
        if outside:
            raise InvalidGenerationConfigError(
                f"logit_bias names token id {outside[0]}; the vocabulary ends at {vocab_size - 1}"
            )
        self._config = config
        self._constraint = constraint
        self._vocab_size = vocab_size
        self._stop_ids = _within(sorted(stop_ids), vocab_size)
        self._prompt_length = len(prompt_ids)
        self._prompt_ids = np.unique(_within(prompt_ids, vocab_size))
        self._bias_ids = np.array(list(config.logit_bias), dtype=np.int64)
        self._biases = np.array(list(config.logit_bias.values()), dtype=np.float64)
        words = [list(word) for word in bad_words_ids if word and max(word) < vocab_size]
        self._banned = _NEVER + [word[0] for word in words if len(word) == 1]
        self._phrases = [word for word in words if len(word) > 1]
        self._reach = max((len(word) - 1 for word in self._phrases), default=0)
        self._prompt_tail = list(prompt_ids[-self._reach :]) if self._reach else []
        self._random = np.random.default_rng(config.seed)
        # Kept, because fresh memory for a vocabulary costs more than the arithmetic in it.
        self._scores = np.empty(vocab_size, dtype=np.float64)
        self._weights = np.empty(0 if config.greedy else vocab_size, dtype=np.float64)

    def sample(self, logits: FloatArray, generated: Sequence[int]) -> int:
        """Choose the next token.

        Args:
            logits: the model's output after the last token `[V]`; left as they are.
            generated: the ids chosen so far, without the prompt.

        Raises:
            NonFiniteLogitsError: NaN or +inf among the logits, or nothing but -inf.
            InvalidGenerationConfigError: the parameters leave no token to choose.
            InvalidConstraintError: the constraint leaves none.
            InvalidTokenizerError: fewer logits than the tokenizer has ids.
        """
        self._check(logits, step=len(generated))
        with np.errstate(over="ignore"):
            scores = self._adjusted(logits, generated)
            choices = self._constrain(scores, step=len(generated))
            best = scores.argmax()
            if not np.isfinite(scores[best]):
                raise InvalidGenerationConfigError(
                    f"no token can be chosen at step {len(generated)}: logit_bias, bad_words, "
                    "repetition_penalty, the minimum lengths and the constraint ban every one or "
                    "overflow; relax them"
                )
            # Nothing is drawn for a forced token, so that a seed gives the same text whether
            # such tokens are sampled or appended at once.
            if self._config.greedy or choices == 1:
                return int(best)
            ids, weights = candidates(
                scores,
                temperature=self._config.temperature,
                top_k=self._config.top_k,
                top_p=self._config.top_p,
                out=self._weights,
            )
        cumulative = weights.cumsum()
        point = self._random.random() * cumulative[-1]
        # "right" steps over tokens of weight 0.
        return int(ids[cumulative.searchsorted(point, side="right")])

    def _check(self, logits: FloatArray, *, step: int) -> None:
        if logits.ndim != 1 or len(logits) < self._vocab_size:
            raise InvalidTokenizerError(
                f"logits of shape {logits.shape} for a tokenizer of {self._vocab_size} ids; "
                "load the tokenizer that belongs to the model"
            )
        # The maximum is NaN where any logit is.
        with np.errstate(invalid="ignore"):
            bad = not logits.max() < np.inf
        if bad:
            token_id = int(np.flatnonzero(~(logits < np.inf))[0])
            raise NonFiniteLogitsError(
                f"the model returned {logits[token_id]} for token {token_id} at step {step}; "
                "check the checkpoint, or load it in a wider dtype"
            )
        if logits[: self._vocab_size].max() == -np.inf:
            raise NonFiniteLogitsError(
                f"the model returned -inf for every token at step {step}; "
                "check the checkpoint, or load it in a wider dtype"
            )

    def _constrain(self, scores: _Scores, *, step: int) -> int:
        """Ban what the constraint does not allow; return how many tokens it allows."""
        if self._constraint is None:
            return len(scores)
        allowed = self._constraint.allowed()
        choices = int(np.count_nonzero(allowed))
        if not choices:
            raise InvalidConstraintError(
                f"the constraint leaves no token to choose at step {step}: what it asks for has "
                "no end that this vocabulary can write; change the schema, pattern or grammar"
            )
        np.copyto(scores, -np.inf, where=~allowed)
        return choices

    def _adjusted(self, logits: FloatArray, generated: Sequence[int]) -> _Scores:
        config = self._config
        scores = self._scores
        scores[:] = logits[: self._vocab_size]
        scores[self._bias_ids] += self._biases
        scores[self._banned] = -np.inf
        if self._phrases:
            tail = [*self._prompt_tail, *generated[-self._reach :]]
            for phrase in self._phrases:
                if tail[len(tail) - len(phrase) + 1 :] == phrase[:-1]:
                    scores[phrase[-1]] = -np.inf
        if config.repetition_penalty != 1:
            seen = np.concatenate([self._prompt_ids, _within(generated, self._vocab_size)])
            found = scores[seen]
            penalty = config.repetition_penalty
            scores[seen] = np.where(found > 0, found / penalty, found * penalty)
        length = len(generated)
        if length < config.min_new_tokens or self._prompt_length + length < config.min_length:
            scores[self._stop_ids] = -np.inf
        return scores


def candidates(
    scores: _Scores, *, temperature: float, top_k: int, top_p: float, out: _Scores
) -> tuple[_Ids, _Scores]:
    """The tokens to draw from, ids ascending, and their weights (not normalised).

    That is the `top_k` likeliest (0: all), and of these the smallest set whose
    probabilities reach `top_p` together (nucleus sampling, Holtzman 2020). Of equal
    scores the lowest id counts as the likeliest.

    Args:
        scores: adjusted logits `[V]`, at least one finite, none NaN or +inf; overwritten.
        temperature: divides the scores, above 0.
        top_k: tokens to keep, 0 for all.
        top_p: probability to reach, above 0 and at most 1.
        out: room for the weights `[V]`; overwritten.
    """
    depths = scores
    depths -= scores.max()
    depths /= temperature
    if top_k:
        ids = _top_k(depths, top_k)
        depths = depths[ids]
    else:
        ids = np.arange(len(depths))
    weights = np.exp(depths, out=out[: len(depths)])
    if top_p < 1:
        nucleus = _nucleus(depths, weights, top_p)
        ids, weights = ids[nucleus], weights[nucleus]
    return ids, weights


def _top_k(depths: _Scores, top_k: int) -> _Ids:
    for depth in _DEPTHS:
        near = np.flatnonzero(depths >= -depth)
        if len(near) >= top_k:
            break
    return near[_largest(depths[near], top_k)]


def _nucleus(depths: _Scores, weights: _Scores, top_p: float) -> _Ids:
    target = top_p * weights.sum()
    sure, reached, floor = 0, 0.0, np.inf
    for depth in _DEPTHS:
        near = np.flatnonzero(depths >= -depth)
        mass = weights[near].sum()
        if mass >= target:
            break
        sure, reached, floor = len(near), mass, -depth
    found = depths[near]
    doubtful = np.sort(found[found < floor])[::-1]
    masses = reached + np.exp(doubtful).cumsum()
    count = sure + int(masses.searchsorted(target)) + 1
    return near[_largest(found, count)]


def _largest(values: _Scores, count: int) -> _Ids:
    if count >= len(values):
        return np.arange(len(values))
    threshold = np.partition(values, -count)[-count]
    keep = values > threshold
    ties = np.flatnonzero(values == threshold)
    keep[ties[: count - np.count_nonzero(keep)]] = True
    return np.flatnonzero(keep)


def _within(token_ids: Sequence[int], vocab_size: int) -> _Ids:
    ids = np.array(token_ids, dtype=np.int64)
    return ids[ids < vocab_size]
