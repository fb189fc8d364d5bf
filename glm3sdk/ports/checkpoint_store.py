"""The port of checkpoints: named tensors, read by slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from glm3sdk.ports.arrays import HostArray


@attrs.frozen
class TensorSpec:
    """Shape and dtype ("float16", "bfloat16", "float32", ...) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


class CheckpointReader(Protocol):
    """An open checkpoint. Contract: `glm3sdk.testing.CheckpointReaderContract`."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype, known without reading data."""

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it; only those bytes are read.

        Raises:
            InvalidCheckpointError: no such tensor, or its bytes cannot be read.
        """
