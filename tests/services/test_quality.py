from __future__ import annotations

import math

import numpy as np
import pytest

from glm3sdk.errors import InvalidDatasetError, NonFiniteLogitsError
from glm3sdk.ports.training import TokenBatch
from glm3sdk.services.quality import compare, learned_logits
from glm3sdk.testing.scripted_runtime import Prefill, ScriptedRuntime, Truncate


def logits(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows)).astype(np.float32)


def test_the_divergence_is_that_of_the_reference_from_the_model():
    # By hand: 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75), and nothing for equal rows.
    ours = logits([0.25, 0.75], [0.9, 0.1])
    theirs = logits([0.5, 0.5], [0.9, 0.1])
    found = compare([(ours + 3, theirs - 2, np.array([1, 0], np.int32))])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert found.tokens == 2
    assert found.mean_kl == pytest.approx(expected, rel=1e-6)
    assert found.loss == pytest.approx(-(math.log(0.75) + math.log(0.9)) / 2, rel=1e-6)
    assert found.reference_loss == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2, rel=1e-6)
    ratio = math.exp(found.loss) / math.exp(found.reference_loss)
    assert found.perplexity_change == pytest.approx(ratio - 1, rel=1e-6)
    # Of two equal probabilities the first counts as the likeliest: the first rows differ.
    assert found.top_1 == 0.5
    assert found.to_json()["tokens"] == 2


def test_the_margin_is_the_references_where_both_differ():
    ours = logits([0.6, 0.4], [0.2, 0.8], [0.3, 0.7])
    theirs = logits([0.9, 0.1], [0.75, 0.25], [0.6, 0.4])
    targets = np.zeros(3, np.int32)
    # The second and the third row differ, by ln 3 and ln 1.5; the first one does not.
    assert compare([(ours, theirs + 5, targets)]).margin == pytest.approx(math.log(3), rel=1e-6)
    assert compare([(ours[:1], theirs[:1], targets[:1])]).margin == 0


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 9, 5), np.float32)
    targets = rng.integers(0, 5, 9).astype(np.int32)
    whole = compare([(ours, theirs, targets)])
    parts = compare(
        [(ours[i : i + 2], theirs[i : i + 2], targets[i : i + 2]) for i in range(0, 9, 2)]
    )
    for name, value in whole.to_json().items():
        assert parts.to_json()[name] == pytest.approx(value, rel=1e-12)


def test_nothing_to_compare_and_nan_are_errors():
    with pytest.raises(InvalidDatasetError, match="nothing to compare"):
        compare([])
    bad = np.array([[0.0, np.nan]], np.float32)
    with pytest.raises(NonFiniteLogitsError):
        compare([(bad, bad, np.array([0], np.int32))])


def test_each_sequence_is_read_once_up_to_its_last_learned_token():
    runtime = ScriptedRuntime("x")
    labels = np.array([[-100, 3, 4, -100], [-100] * 4, [2, -100, -100, -100]], np.int32)
    ids = np.array([[1, 2, 3, 0], [1, 1, 1, 1], [1, 2, 0, 0]], np.int32)
    found = list(learned_logits(runtime, [TokenBatch(ids, labels)]))
    assert [targets.tolist() for _, targets in found] == [[3, 4], [2]]
    assert [rows.shape[0] for rows, _ in found] == [2, 1]
    assert [call for call in runtime.calls if isinstance(call, Prefill | Truncate)] == [
        Truncate(0, 0),
        Prefill(0, (1, 2, 3)),
        Truncate(0, 0),
        Prefill(0, (1,)),
    ]
