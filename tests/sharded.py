"""Sharded checkpoints for tests: layouts at random, readers in memory, MindSpore's own files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from glm3sdk.domain.sharding import Layout
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import index_ranges

DEVICES = 8
MATRICES = ([8], [2, 4], [4, 2], [2, 2, 2], [1, 8], [2, 1, 4], [2, 2, 1, 2], [8, 1])


class Arrays:
    """A `CheckpointReader` of arrays. `reads` lists what was asked for."""

    def __init__(self, arrays: Mapping[str, HostArray]) -> None:
        self.arrays = dict(arrays)
        self.reads: list[str] = []

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        if name not in self.arrays:
            raise InvalidCheckpointError(f"no tensor {name!r}")
        self.reads.append(name)
        array = self.arrays[name]
        ranges = index_ranges(name, array.shape, index)
        return np.array(array[tuple(slice(*part) for part in ranges)])


@st.composite
def layouts(draw: st.DrawFn, dimensions: int = 2, nested: bool = True) -> Layout:
    """A layout over eight devices, with or without optimizer shards."""
    matrix = draw(st.sampled_from(MATRICES))
    axes = draw(st.permutations(range(len(matrix))))
    tensor_map: list[list[int]] = [[] for _ in range(dimensions)]
    for axis in axes[: draw(st.integers(0, len(axes)))]:
        part = tensor_map[draw(st.integers(0, dimensions - 1))]
        if nested or not part:
            part.append(axis)
    used = {axis for part in tensor_map for axis in part}
    unused = [a for a in range(len(matrix)) if a not in used and matrix[-1 - a] > 1]
    replicas = math.prod(matrix[-1 - axis] for axis in unused)
    size, step = 0, 0
    if replicas > 1:
        size = draw(st.sampled_from([0, -1, *(n for n in (2, 4, 8) if replicas % n == 0)]))
        step = math.prod(matrix[len(matrix) - unused[0] :]) if size else 0
    return Layout(matrix, tensor_map, opt_weight_shard_step=step, opt_weight_shard_size=size)


def numbered(shape: tuple[int, ...], dtype: Any = np.float32, start: int = 0) -> HostArray:
    """Values that are all different, so that one in a wrong place is seen."""
    return (np.arange(math.prod(shape)) + start).reshape(shape).astype(dtype)
