"""A base checkpoint with a LoRA adapter merged in, a tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np

from glm3sdk.domain.lora import Lora, LoraPair
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec


class MergedCheckpoint:
    """A `CheckpointReader` of W + scale B A. Adapted tensors come as float32.

    Args:
        base: the model's checkpoint.
        adapter: the adapter's matrices under PEFT's names.
        lora: its shape and strength.
        config: the model's hyper-parameters.

    Raises:
        InvalidCheckpointError: the adapter lacks a matrix, or one does not fit the model.
    """

    def __init__(
        self, base: CheckpointReader, adapter: CheckpointReader, *, lora: Lora, config: Glm3Config
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._scale = np.float32(lora.scale)
        self._pairs: dict[str, LoraPair] = {}
        for pair in lora.pairs(config):
            for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b)):
                spec = adapter.tensors.get(name)
                if spec is None or spec.shape != shape:
                    found = "is missing" if spec is None else f"has shape {list(spec.shape)}"
                    raise InvalidCheckpointError(
                        f"the adapter does not fit the model: {name} {found}, "
                        f"expected {list(shape)}"
                    )
            self._pairs[pair.weight] = pair
        self._tensors = {
            name: attrs.evolve(spec, dtype="float32") if name in self._pairs else spec
            for name, spec in base.tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The base's tensors."""
        return self._tensors

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor or a slice of it, with the adapter's share added."""
        value = self._base.read(name, index)
        pair = self._pairs.get(name)
        if pair is None:
            return value
        rows, columns = (*index, slice(None), slice(None))[:2]
        a = self._adapter.read(pair.name_a, (slice(None), columns)).astype(np.float32)
        b = self._adapter.read(pair.name_b, (rows, slice(None))).astype(np.float32)
        merged: HostArray = value.astype(np.float32) + self._scale * (b @ a)
        return merged
