"""Matrices in 8 or 4 bits a weight, and back. Plain numpy.

int8: one scale a row, `weight = scale * q` with q in -127..127.
int4: one float16 scale and one 4-bit zero point for each group of columns of a row,
`weight = scale * (q - zero_point)` with q in 0..15; two values a byte, the first in the low half.
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from glm3sdk.ports.arrays import FloatArray

GROUPS = (128, 64, 32)
"""Columns of a group, the best first; the CPU plugin has fast kernels for these alone."""

_BLOCK = 1 << 21  # values that are worked on at once, so that they stay near the processor


@attrs.frozen(eq=False)
class Int8Matrix:
    """Values int8 `[N, K]` and scales float32 `[N, 1]`."""

    values: npt.NDArray[np.int8]
    scales: FloatArray


@attrs.frozen(eq=False)
class Int4Matrix:
    """Values uint8 `[N, K / 2]`, scales float16 `[N, G, 1]`, zero points uint8 `[ceil(N G / 2)]`.

    Values and zero points are packed, two a byte.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zero_points: npt.NDArray[np.uint8]


def group_size(columns: int) -> int | None:
    """Columns of a group for rows of that many, or None where no group fits."""
    return next((size for size in GROUPS if columns % size == 0), None)


def quantize_int8(rows: FloatArray) -> Int8Matrix:
    """Quantise `[N, K]`, each row by its largest magnitude."""
    values, scales = np.empty(rows.shape, np.int8), np.empty((len(rows), 1), np.float32)
    for part in _blocks(rows):
        block = rows[part]
        largest = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
        scale = largest / np.float32(127)
        scale[scale == 0] = 1
        scaled = block / scale
        np.rint(scaled, out=scaled)
        np.clip(scaled, -127, 127, out=scaled)
        values[part], scales[part] = scaled, scale
    return Int8Matrix(values, scales)


def quantize_int4(rows: FloatArray, group: int) -> Int4Matrix:
    """Quantise `[N, K]`, each group of `group` columns by its least and greatest value.

    The range always holds 0, so that 0 stays 0.
    """
    count, columns = rows.shape
    groups = columns // group
    values = np.empty((count, columns // 2), np.uint8)
    scales = np.empty((count, groups, 1), np.float16)
    zeros = np.empty((count, groups), np.uint8)
    for part in _blocks(rows):
        block = rows[part].reshape(-1, groups, group)
        low = np.minimum(block.min(axis=2, keepdims=True), 0)
        high = np.maximum(block.max(axis=2, keepdims=True), 0)
        # Rounded first: what is read again is the rounded scale.
        scale = ((high - low) / 15).astype(np.float16)
        used = np.where(scale > 0, scale.astype(np.float32), np.float32(1))
        zero = np.clip(np.rint(-low / used), 0, 15)
        scaled = block / used
        np.rint(scaled, out=scaled)
        scaled += zero
        np.clip(scaled, 0, 15, out=scaled)
        values[part] = pack(scaled.astype(np.uint8).reshape(-1, columns))
        scales[part], zeros[part] = used, zero[..., 0]
    return Int4Matrix(values, scales, pack(zeros.reshape(-1)))


def pack(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two 4-bit values a byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.append(values, np.zeros((*values.shape[:-1], 1), np.uint8), axis=-1)
    packed: npt.NDArray[np.uint8] = values[..., ::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def unpack(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The first `count` 4-bit values, a byte each."""
    flat = packed.reshape(-1)
    values = np.empty(2 * flat.size, np.uint8)
    np.bitwise_and(flat, 15, out=values[::2])
    np.right_shift(flat, 4, out=values[1::2])
    return values[:count]


def _blocks(rows: FloatArray) -> list[slice]:
    step = max(1, _BLOCK // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]
