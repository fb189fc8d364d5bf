"""A checkpoint of one value, for tests of stores and for the processes that they kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.ports.checkpoint_store import TensorSpec

MODEL = "model.safetensors"
STORE = LocalCheckpointStore()


def save(path: Path | str, value: float = 1.0, size: int = 1000) -> None:
    writer = STORE.create(str(path))
    values = [("t", np.full(size, value, np.float32))]
    writer.add_tensors(MODEL, {"t": TensorSpec((size,), "float32")}, values)
    writer.add_file("value.json", str(value).encode())
    writer.commit()


def value_of(path: Path | str) -> float:
    """The value that `save` wrote: read whole, and the same in both files."""
    opened = STORE.open(str(path))
    opened.verify()
    value = float(opened.read_file("value.json"))
    assert (opened.read("t") == value).all()
    return value
