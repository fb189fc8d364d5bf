from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glm3sdk.adapters.openvino.quantization import (
    group_size,
    pack,
    quantize_int4,
    quantize_int8,
    unpack,
)

ROWS = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.just(32)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


def unpacked(packed: np.ndarray, count: int) -> list[int]:
    """4-bit values one at a time: the low half of a byte, then the high one."""
    return [int(byte) >> shift & 15 for byte in packed.reshape(-1) for shift in (0, 4)][:count]


def naive_int4(matrix, rows: int, columns: int, group: int) -> np.ndarray:
    values = unpacked(matrix.values, rows * columns)
    zeros = unpacked(matrix.zero_points, rows * columns // group)
    scales = matrix.scales.reshape(-1).astype(np.float64)
    return np.array(
        [scales[at // group] * (value - zeros[at // group]) for at, value in enumerate(values)]
    ).reshape(rows, columns)


@given(ROWS)
def test_an_int8_weight_is_within_half_a_step_of_its_row(rows: np.ndarray):
    matrix = quantize_int8(rows)
    back = np.array(
        [
            [float(s[0]) * int(v) for v in row]
            for row, s in zip(matrix.values, matrix.scales, strict=True)
        ]
    )
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - rows) <= step * 0.5001 + 1e-30).all()
    assert np.abs(matrix.values.astype(int)).max() <= 127


@pytest.mark.parametrize("group", [16, 32])  # of 32 columns: two groups, and one
@given(ROWS)
def test_an_int4_weight_is_within_a_step_of_its_group(group: int, rows: np.ndarray):
    matrix = quantize_int4(rows, group)
    back = naive_int4(matrix, *rows.shape, group)
    groups = rows.reshape(len(rows), -1, group)
    span = np.maximum(groups.max(2), 0) - np.minimum(groups.min(2), 0)
    # Half a step for the value, half for the zero point, and what float16 rounds of 15 steps;
    # below 6e-8 a step in float16 is nothing.
    allowed = np.repeat(span / 15 * 1.02 + 15 * 6e-8, group, axis=1)
    assert (np.abs(back - rows) <= allowed).all()


def test_zeros_stay_zeros():
    rows = np.zeros((2, 32), np.float32)
    rows[0, 5], rows[1, :] = 3.0, np.linspace(1, 2, 32)
    rows[1, 7] = 0
    back = naive_int4(quantize_int4(rows, 16), 2, 32, 16)
    assert (back[rows == 0] == 0).all()
    eight = quantize_int8(rows)
    assert (eight.values[rows == 0] == 0).all()
    assert quantize_int8(np.zeros((1, 4), np.float32)).scales.tolist() == [[1.0]]


def test_what_is_worked_on_in_blocks_is_the_same_as_in_one(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    whole8, whole4 = quantize_int8(rows), quantize_int4(rows, 32)
    monkeypatch.setattr("glm3sdk.adapters.openvino.quantization._BLOCK", 128)
    parts8, parts4 = quantize_int8(rows), quantize_int4(rows, 32)
    np.testing.assert_array_equal(parts8.values, whole8.values)
    np.testing.assert_array_equal(parts8.scales, whole8.scales)
    np.testing.assert_array_equal(parts4.values, whole4.values)
    np.testing.assert_array_equal(parts4.zero_points, whole4.zero_points)


def test_an_odd_number_of_values_is_packed_with_a_zero():
    assert pack(np.array([1, 2, 15], np.uint8)).tolist() == [0x21, 0x0F]


@given(st.lists(st.integers(0, 15), max_size=9))
def test_what_was_packed_is_unpacked(values: list[int]):
    packed = pack(np.array(values, np.uint8))
    assert unpack(packed, len(values)).tolist() == values == unpacked(packed, len(values))


@pytest.mark.parametrize(
    ("columns", "group"), [(4096, 128), (13696, 128), (64, 64), (96, 32), (688, None), (40, None)]
)
def test_a_group_is_the_largest_that_divides_a_row(columns: int, group: int | None):
    assert group_size(columns) == group
