from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference.glm3_numpy import forward
from safetensors.numpy import load_file

from glm3sdk.domain.model import Glm3Config
from glm3sdk.testing.random_checkpoint import random_weights


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_oracle_gives_the_logits_of_the_official_code(shared_data: Path, dtype: type) -> None:
    folder = shared_data / "parity" / "glm3_tiny"
    config = Glm3Config.from_hugging_face(json.loads((folder / "config.json").read_text()))
    expected = np.load(folder / "expected.npz")
    logits = forward(
        config, load_file(folder / "model.safetensors"), expected["input_ids"], dtype=dtype
    )
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=0)


# The published example has one layer, one rotary pair and no rope_ratio: what it cannot show
# is held by properties that follow from the description of the architecture.
CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=20,
    num_attention_heads=4,
    kv_channels=16,
    multi_query_group_num=2,
    padded_vocab_size=40,
    seq_length=32,
)
IDS = [7, 3, 3, 39, 0, 12]


def test_a_row_of_the_oracle_sees_nothing_that_comes_after() -> None:
    weights = random_weights(CONFIG)
    whole = forward(CONFIG, weights, IDS)
    np.testing.assert_allclose(forward(CONFIG, weights, IDS[:4]), whole[:4], atol=1e-12)
    assert np.abs(forward(CONFIG, weights, [8, *IDS[1:]])[-1] - whole[-1]).max() > 1e-3


@pytest.mark.parametrize("other", [50.0, 500.0])
def test_the_rope_ratio_shows_in_the_oracle_from_the_second_position_on(other: float) -> None:
    weights = random_weights(CONFIG)
    config = Glm3Config.from_hugging_face({**CONFIG.to_hugging_face(), "rope_ratio": other})
    plain, stretched = forward(CONFIG, weights, IDS), forward(config, weights, IDS)
    np.testing.assert_array_equal(plain[0], stretched[0])
    assert np.abs(plain[1:] - stretched[1:]).max() > 1e-3


def test_grouped_heads_of_the_oracle_equal_repeated_key_and_value_heads() -> None:
    weights = random_weights(CONFIG)
    width, heads = CONFIG.kv_channels, CONFIG.num_attention_heads
    full = Glm3Config.from_hugging_face(
        {**CONFIG.to_hugging_face(), "multi_query_group_num": heads}
    )
    repeated = dict(weights)
    for name, array in weights.items():
        if "query_key_value" in name:
            parts = np.split(array, len(array) // width)
            groups = [parts[n] for n in (4, 4, 5, 5, 6, 6, 7, 7)]
            repeated[name] = np.concatenate([*parts[:heads], *groups])
    np.testing.assert_allclose(
        forward(full, repeated, IDS), forward(CONFIG, weights, IDS), atol=1e-12
    )
