from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import (
    InvalidGenerationConfigError,
    InvalidTokenizerError,
    NonFiniteLogitsError,
)
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.services.sampling import Sampler, candidates

EOS = 2


def sampler(
    vocab_size: int = 8,
    *,
    prompt_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (EOS,),
    bad_words_ids: Sequence[Sequence[int]] = (),
    **options: Any,
) -> Sampler:
    return Sampler(
        GenerationConfig(**options),
        vocab_size=vocab_size,
        stop_ids=frozenset(stop_ids),
        prompt_ids=prompt_ids,
        bad_words_ids=bad_words_ids,
    )


def greedy(*args: Any, **options: Any) -> Sampler:
    return sampler(*args, do_sample=False, **options)


def logits(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


# The likeliest from the left: 3, 4, 5, 6, 7; ids 0 and 1 would win if they were allowed.
DESCENDING = logits(9, 9, -9, 5, 4, 3, 2, 1)


def test_greedy_takes_the_likeliest_token() -> None:
    assert greedy().sample(logits(0, 0, 1, 2, 7, 3, 0, 0), []) == 4


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert greedy().sample(logits(0, 0, 1, 7, 1, 7, 7, 0), []) == 3


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}])
def test_some_parameters_make_sampling_greedy(options: dict[str, Any]) -> None:
    chosen = sampler(**options)
    assert {chosen.sample(DESCENDING, []) for _ in range(50)} == {3}


def test_padding_and_ids_without_text_are_never_chosen() -> None:
    values = logits(50, 50, 0, 1, 0, 60, 60)
    assert greedy(5).sample(values, []) == 3
    drawn = sampler(5, temperature=100.0, top_p=1.0)
    assert {drawn.sample(values, []) for _ in range(200)} == {2, 3, 4}


def test_the_logits_of_the_caller_are_left_as_they_are() -> None:
    values = DESCENDING.copy()
    values.setflags(write=False)
    chosen = sampler(
        prompt_ids=[3], repetition_penalty=2.0, min_new_tokens=5, logit_bias={4: 1.0}, top_k=3
    )
    chosen.sample(values, [4])
    assert np.array_equal(values, DESCENDING)


def test_a_seed_reproduces_and_no_seed_differs() -> None:
    values = np.zeros(1000, dtype=np.float32)

    def reply(seed: int | None) -> list[int]:
        chosen = sampler(1000, seed=seed, top_p=1.0)
        return [chosen.sample(values, []) for _ in range(20)]

    assert reply(7) == reply(7)
    assert reply(7) != reply(8)
    # Equal by chance once in 1000 ** 20.
    assert reply(None) != reply(None)


def frequencies(chosen: Sampler, values: FloatArray, draws: int) -> np.ndarray[Any, Any]:
    counts = np.bincount([chosen.sample(values, []) for _ in range(draws)], minlength=len(values))
    return counts / draws


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        # p ** (1 / 0.5) = 0.16, 0.09, 0.04, 0.01 over 0.3
        ({"temperature": 0.5, "top_p": 1.0}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        # Of the three likeliest the first two hold 7/9 = 0.78.
        ({"temperature": 1.0, "top_p": 0.75, "top_k": 3}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(
    options: dict[str, Any], expected: list[float]
) -> None:
    # exp(logit) is 0.1, 0.4, 0.2, 0.3 for ids 3..6, so no order helps.
    values = np.log(np.array([1, 1, 1e-30, 0.1, 0.4, 0.2, 0.3], dtype=np.float32))
    draws = 4000
    drawn = frequencies(sampler(7, seed=5, **options), values, draws)
    by_rank = drawn[[4, 6, 5, 3]]
    # Four standard deviations of a frequency; the seed is fixed, so this never flickers.
    tolerance = 4 * np.sqrt(np.array(expected) * (1 - np.array(expected)) / draws)
    assert np.all(np.abs(by_rank - expected) <= tolerance)
    assert math.isclose(by_rank.sum(), 1)


def test_logit_bias_is_added() -> None:
    assert greedy(logit_bias={6: 3.5}).sample(DESCENDING, []) == 6
    assert greedy(logit_bias={6: 2.5}).sample(DESCENDING, []) == 3
    assert greedy(logit_bias={3: -1e308, 4: -1e308}).sample(DESCENDING, []) == 5
    assert greedy(logit_bias={0: 100.0}).sample(DESCENDING, []) == 3


def test_logit_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidGenerationConfigError, match=r"id 8; the vocabulary ends at 7"):
        sampler(logit_bias={8: 1.0})


def test_a_bad_word_of_one_token_never_comes() -> None:
    chosen = greedy(bad_words_ids=[[3], [4]])
    assert chosen.sample(DESCENDING, []) == 5
    assert chosen.sample(DESCENDING, [5, 5]) == 5


def test_the_last_token_of_a_bad_phrase_is_banned_after_its_beginning() -> None:
    chosen = greedy(bad_words_ids=[[6, 7, 3], [7, 4]])
    assert chosen.sample(DESCENDING, []) == 3
    assert chosen.sample(DESCENDING, [6]) == 3
    assert chosen.sample(DESCENDING, [7, 6]) == 3
    assert chosen.sample(DESCENDING, [5, 6, 7]) == 5
    assert chosen.sample(DESCENDING, [6, 7, 5]) == 3


def test_a_bad_phrase_may_begin_in_the_prompt() -> None:
    chosen = greedy(prompt_ids=[5, 6], bad_words_ids=[[6, 7, 3]])
    assert chosen.sample(DESCENDING, [7]) == 4
    assert chosen.sample(DESCENDING, [5, 7]) == 3


def test_a_bad_word_outside_the_vocabulary_bans_nothing() -> None:
    assert greedy(bad_words_ids=[[3, 99], [99], []]).sample(DESCENDING, [3]) == 3


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    values = logits(9, 9, -9, 5, 4, -1, -1.5, -9)
    assert greedy(repetition_penalty=1.2).sample(values, [3]) == 3
    assert greedy(repetition_penalty=1.3).sample(values, [3]) == 4
    # 5 is cut to 0.05, 4 to 0.04.
    assert greedy(repetition_penalty=100.0).sample(values, [3, 4]) == 3
    negative = logits(9, 9, -9, -9, -9, -1, -1.5, -9)
    assert greedy(repetition_penalty=1.4).sample(negative, [5]) == 5
    assert greedy(repetition_penalty=1.6).sample(negative, [5]) == 6


def test_the_repetition_penalty_counts_the_prompt_and_each_token_once() -> None:
    chosen = greedy(prompt_ids=[3, 3, 3, 3, 60_000], repetition_penalty=1.2)
    # 5 / 1.2 = 4.17 stays above 4; penalised twice it would fall to 3.47.
    assert chosen.sample(DESCENDING, [3, 3, 3]) == 3
    assert greedy(prompt_ids=[3], repetition_penalty=1.3).sample(DESCENDING, []) == 4


def test_stop_ids_wait_for_the_least_new_tokens() -> None:
    chosen = greedy(min_new_tokens=2, stop_ids=[3, 4, 70_000])
    assert [chosen.sample(DESCENDING, [7] * length) for length in range(4)] == [5, 5, 3, 3]


def test_the_least_length_counts_the_prompt() -> None:
    chosen = greedy(min_length=5, prompt_ids=[6, 6, 6], stop_ids=[3])
    assert [chosen.sample(DESCENDING, [7] * length) for length in range(4)] == [4, 4, 3, 3]


def test_options_work_together() -> None:
    chosen = greedy(
        prompt_ids=[6],
        stop_ids=[4],
        min_new_tokens=1,
        bad_words_ids=[[3]],
        logit_bias={7: 2.5},
        repetition_penalty=1.2,
    )
    # 3 is bad, 4 must wait, 5 has 3, 6 has 2 / 1.2, 7 has 3.5.
    assert chosen.sample(DESCENDING, []) == 7
    # Now 4 may come with 4.
    assert chosen.sample(DESCENDING, [7]) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 4, 7, 9])
def test_logits_that_are_not_numbers_name_the_step(bad: float, place: int) -> None:
    values = np.zeros(10, dtype=np.float32)
    values[place] = bad
    for chosen in (sampler(), greedy()):
        with pytest.raises(NonFiniteLogitsError, match=rf"{bad} for token {place} at step 3"):
            chosen.sample(values, [5, 5, 5])


def test_minus_infinity_only_bans_its_token() -> None:
    values = np.full(8, -np.inf, dtype=np.float32)
    values[6] = -3
    assert greedy().sample(values, []) == 6
    assert sampler(repetition_penalty=1.5).sample(values, [5, 6]) == 6


def test_nothing_but_minus_infinity_is_the_fault_of_the_model() -> None:
    values = np.full(10, -np.inf, dtype=np.float32)
    values[8:] = 0  # the padding of the vocabulary
    with pytest.raises(NonFiniteLogitsError, match="-inf for every token at step 1"):
        greedy().sample(values, [5])


def test_a_failing_step_leaves_the_sampler_usable() -> None:
    chosen = greedy()
    with pytest.raises(NonFiniteLogitsError):
        chosen.sample(DESCENDING * np.float32(np.nan), [])
    assert chosen.sample(DESCENDING, []) == 3


def test_options_that_leave_no_token_are_refused() -> None:
    every = [[token_id] for token_id in range(2, 8)]
    for chosen in (greedy(bad_words_ids=every), sampler(bad_words_ids=every)):
        with pytest.raises(InvalidGenerationConfigError, match=r"at step 2: .*relax"):
            chosen.sample(DESCENDING, [5, 5])


def test_options_that_overflow_are_refused() -> None:
    with pytest.raises(InvalidGenerationConfigError, match="overflow"):
        greedy(repetition_penalty=1e-320).sample(DESCENDING, [3])


@pytest.mark.parametrize("shape", [(7,), (1, 8), (0,)])
def test_logits_of_another_vocabulary_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidTokenizerError, match="tokenizer of 8 ids"):
        sampler().sample(np.zeros(shape, dtype=np.float32), [])


def test_a_tiny_temperature_is_as_good_as_greedy() -> None:
    assert sampler(temperature=5e-324, top_p=1.0).sample(DESCENDING, []) == 3


def naive_distribution(
    scores: Sequence[float], temperature: float, top_k: int, top_p: float
) -> dict[int, float] | None:
    """Probabilities by the definition; None where rounding decides who belongs."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: top_k or None]
    best = scores[ranked[0]]
    weights = [math.exp((scores[i] - best) / temperature) for i in ranked]
    total = math.fsum(weights)
    kept: list[int] = []
    for rank in range(len(ranked)):
        before = math.fsum(weights[:rank]) / total
        if rank and top_p < 1 and abs(before - top_p) < 1e-12:
            return None
        if rank and top_p < 1 and before >= top_p:
            break
        kept.append(rank)
    reached = math.fsum(weights[rank] for rank in kept)
    return {ranked[rank]: weights[rank] / reached for rank in kept}


# Multiples of 1/64 keep their order exactly when the maximum is subtracted.
levels = st.integers(-2000, 2000).map(lambda step: step / 64)
few_levels = st.sampled_from([-np.inf, -20.0, -1.0, 0.0, 0.5, 2.0, 2.25])


@settings(max_examples=300)
@given(
    scores=arrays.arrays(np.float64, st.integers(1, 80), elements=few_levels | levels),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.integers(0, 90),
    top_p=st.sampled_from([1e-6, 0.3, 0.5, 0.8, 0.95, 0.999999, 1.0]),
)
def test_candidates_are_those_of_the_definition(
    scores: np.ndarray[Any, Any], temperature: float, top_k: int, top_p: float
) -> None:
    assume(np.isfinite(scores).any())
    expected = naive_distribution(scores.tolist(), temperature, top_k, top_p)
    assume(expected is not None)

    ids, weights = candidates(
        scores, temperature=temperature, top_k=top_k, top_p=top_p, out=np.empty_like(scores)
    )

    assert ids.tolist() == sorted(expected)
    # 80 terms of double precision: far within 1e-12.
    probabilities = weights / weights.sum()
    assert np.allclose(probabilities, [expected[i] for i in ids], rtol=1e-12, atol=0)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (0, 0.9999), (50, 0.8), (50, 1.0)])
def test_candidates_are_exact_in_a_vocabulary_of_full_size(
    spread: float, top_k: int, top_p: float
) -> None:
    scores = np.random.default_rng(1).normal(size=65024) * spread
    order = np.argsort(-scores, kind="stable")[: top_k or None]
    weights = np.exp(scores[order] - scores[order[0]])
    before = np.concatenate([[0.0], weights.cumsum()[:-1]]) / weights.sum()
    expected = order if top_p == 1 else order[before < top_p]

    ids, _ = candidates(
        scores, temperature=1.0, top_k=top_k, top_p=top_p, out=np.empty_like(scores)
    )

    # Where all are equal, rounding of the sums moves the end by one at most.
    assert abs(len(ids) - len(expected)) <= (spread == 0)
    assert set(ids.tolist()) == set(order[: len(ids)].tolist())
