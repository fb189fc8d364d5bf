from __future__ import annotations

from collections.abc import Mapping

import attrs
import ml_dtypes
import numpy as np
import pytest

from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.services.adapters import MergedCheckpoint
from glm3sdk.testing.random_checkpoint import random_weights

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=12,
    ffn_hidden_size=8,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=24,
    seq_length=32,
)
LORA = Lora(rank=3, alpha=6.0, targets=LINEAR_LAYERS)


@attrs.frozen(eq=False)
class Arrays:
    """A `CheckpointReader` that keeps what was asked of it."""

    arrays: Mapping[str, np.ndarray]
    asked: list[tuple[str, tuple[slice, ...]]] = attrs.field(factory=list)

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        if name not in self.arrays:
            raise InvalidCheckpointError(f"no tensor {name!r}")
        self.asked.append((name, index))
        return self.arrays[name][index]


def matrices(lora: Lora = LORA, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, np.float32)
        for pair in lora.pairs(CONFIG)
        for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b))
    }


WEIGHTS = random_weights(CONFIG)
ADAPTER = matrices()


def merged(weights: Mapping[str, np.ndarray] = WEIGHTS) -> MergedCheckpoint:
    return MergedCheckpoint(Arrays(weights), Arrays(ADAPTER), lora=LORA, config=CONFIG)


def test_an_adapted_weight_is_w_plus_alpha_over_r_times_b_a() -> None:
    checkpoint = merged()
    adapted = {pair.weight: pair for pair in LORA.pairs(CONFIG)}
    assert len(adapted) == 4 * CONFIG.num_layers
    for name, weight in WEIGHTS.items():
        expected = weight.astype(np.float64)
        if pair := adapted.get(name):
            product = ADAPTER[pair.name_b].astype(float) @ ADAPTER[pair.name_a].astype(float)
            expected = expected + 6.0 / 3 * product
        # float32 sums of three products around 1.
        np.testing.assert_allclose(checkpoint.read(name), expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "index",
    [(slice(3, 7),), (slice(None), slice(2, 5)), (slice(1, 9), slice(0, 1)), (slice(0, 0),)],
)
def test_a_slice_is_merged_alone(index: tuple[slice, ...]) -> None:
    name = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
    checkpoint = merged()
    np.testing.assert_allclose(
        checkpoint.read(name, index), checkpoint.read(name)[index], atol=1e-6
    )


def test_no_more_is_read_than_a_slice_needs() -> None:
    base, adapter = Arrays(WEIGHTS), Arrays(ADAPTER)
    pair = LORA.pairs(CONFIG)[0]
    checkpoint = MergedCheckpoint(base, adapter, lora=LORA, config=CONFIG)
    assert base.asked == adapter.asked == []
    rows, columns = slice(2, 4), slice(5, 9)
    checkpoint.read(pair.weight, (rows, columns))
    assert base.asked == [(pair.weight, (rows, columns))]
    assert adapter.asked == [
        (pair.name_a, (slice(None), columns)),
        (pair.name_b, (rows, slice(None))),
    ]


def test_adapted_tensors_of_a_half_precision_base_are_float32_and_others_stay() -> None:
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in WEIGHTS.items()}
    checkpoint = merged(half)
    adapted = {pair.weight for pair in LORA.pairs(CONFIG)}
    for name, spec in checkpoint.tensors.items():
        assert spec == TensorSpec(WEIGHTS[name].shape, "float32" if name in adapted else "bfloat16")
        assert checkpoint.read(name).dtype.name == spec.dtype


def test_an_adapter_that_lacks_a_matrix_or_has_another_shape_is_refused() -> None:
    pair = LORA.pairs(CONFIG)[-1]
    lacking = {name: array for name, array in ADAPTER.items() if name != pair.name_b}
    other = {**ADAPTER, pair.name_a: np.zeros((4, 8), np.float32)}
    for tensors, words in (
        (lacking, f"{pair.name_b} is missing"),
        (other, rf"{pair.name_a} has shape \[4, 8\], expected \[3, 8\]"),
    ):
        with pytest.raises(InvalidCheckpointError, match=words):
            MergedCheckpoint(Arrays(WEIGHTS), Arrays(tensors), lora=LORA, config=CONFIG)


def test_an_adapter_for_a_larger_model_is_refused() -> None:
    larger = attrs.evolve(CONFIG, num_layers=3)
    with pytest.raises(InvalidCheckpointError, match=r"layers\.2"):
        MergedCheckpoint(Arrays(random_weights(larger)), Arrays(ADAPTER), lora=LORA, config=larger)
