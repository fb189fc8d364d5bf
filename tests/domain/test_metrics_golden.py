from __future__ import annotations

import json
from pathlib import Path

import pytest

from glm3sdk.adapters.word_segmentation import jieba_words
from glm3sdk.domain.bleu import bleu_4
from glm3sdk.domain.rouge import rouge

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8")
)
CASES = [pytest.param(case, id=case["name"]) for case in GOLDEN["cases"]]

# rouge-chinese adds 1e-8 below the fraction line.
ROUGE_TOLERANCE = 2e-8


@pytest.mark.parametrize("case", CASES)
def test_bleu_agrees_with_nltk(case):
    words = bleu_4(case["prediction_words"], case["reference_words"])
    assert words == pytest.approx(case["bleu_of_words"], abs=1e-12)
    characters = bleu_4(case["prediction"], case["reference"])
    assert characters == pytest.approx(case["bleu_of_characters"], abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_rouge_agrees_with_rouge_chinese(case):
    scores = rouge(case["prediction_words"], case["reference_words"])
    refused = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    expected = case["rouge"] or refused
    assert scores.rouge_1 == pytest.approx(expected["rouge-1"], abs=ROUGE_TOLERANCE)
    assert scores.rouge_2 == pytest.approx(expected["rouge-2"], abs=ROUGE_TOLERANCE)
    assert scores.rouge_l == pytest.approx(expected["rouge-l"], abs=ROUGE_TOLERANCE)


def test_text_is_cut_as_jieba_does_by_itself():
    pytest.importorskip("jieba", reason="jieba is not installed: pip install 'glm3sdk[evaluate]'")
    cut = jieba_words()
    for case in GOLDEN["cases"]:
        assert cut(case["prediction"]) == case["prediction_words"]
        assert cut(case["reference"]) == case["reference_words"]
