"""What stored tensors are: dtypes, sizes, and which model they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.model_fit import ModelFit, fit_model
from glm3sdk.ports.arrays import numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.tensor_values import DTYPES, FLOATS

_BLOCK_BYTES = 64 * 1024 * 1024


@attrs.frozen
class DtypeShare:
    """The tensors of one dtype: how many, and their bytes (0 where numpy has no such type)."""

    tensors: int
    bytes: int


@attrs.frozen(kw_only=True)
class Inspection:
    """What is stored at a path.

    Attributes:
        path: as it was found.
        format: "hugging-face", "published", "lora", "sharded", "mindspore",
            "mindspore-safetensors", "safetensors" or "torch".
        files: names and sizes in bytes.
        tensors: every one.
        model: the ChatGLM3 that they make, or None.
        base: of an adapter, the name of its base model.
        adapter: of an adapter, its rank, alpha and targets.
        notes: what else is to be known.
    """

    path: str
    format: str
    files: Mapping[str, int]
    tensors: Mapping[str, TensorSpec]
    model: ModelFit | None = None
    base: str | None = None
    adapter: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def dtypes(self) -> dict[str, DtypeShare]:
        """The dtypes, each with its share; the one of most bytes first."""
        shares: dict[str, DtypeShare] = {}
        for spec in self.tensors.values():
            known = shares.get(spec.dtype, DtypeShare(0, 0))
            shares[spec.dtype] = DtypeShare(known.tensors + 1, known.bytes + size_of(spec))
        return dict(sorted(shares.items(), key=lambda item: (-item[1].bytes, item[0])))

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(spec.shape) for spec in self.tensors.values())

    def to_json(self, *, tensors: bool) -> dict[str, Any]:
        """The findings as JSON values; with `tensors`, every name, shape and dtype."""
        values: dict[str, Any] = {
            "path": self.path,
            "format": self.format,
            "model": _model_values(self.model) if self.model else None,
            "base": self.base,
            "adapter": dict(self.adapter) if self.adapter else None,
            "tensor_count": len(self.tensors),
            "elements": self.elements,
            "dtypes": {name: attrs.asdict(share) for name, share in self.dtypes.items()},
            "files": dict(self.files),
            "notes": list(self.notes),
        }
        if tensors:
            values["tensors"] = {
                name: {"shape": list(spec.shape), "dtype": spec.dtype}
                for name, spec in self.tensors.items()
            }
        return values


@attrs.frozen(kw_only=True)
class FileCheck:
    """What verifying a file found.

    Attributes:
        file: its name; "the tensors" for all of them together.
        size: bytes; 0 where it is missing.
        compared: what it was compared with, such as "sha256 of manifest.json".
        error: what is wrong with it; None where nothing is.
    """

    file: str
    size: int = 0
    compared: tuple[str, ...] = ()
    error: str | None = None

    @property
    def state(self) -> str:
        """In a word: damaged, ok, or unknown where there was nothing to compare it with."""
        if self.error is not None:
            return "damaged"
        return "ok" if self.compared else "unknown"

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {**attrs.asdict(self), "state": self.state}


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor; 0 where numpy has no such dtype."""
    width = numpy_dtype(spec.dtype).itemsize if spec.dtype in DTYPES else 0
    return math.prod(spec.shape) * width


def find_model(
    tensors: Mapping[str, TensorSpec],
    config: Glm3Config | None,
    rename: Callable[[str], str],
) -> ModelFit | None:
    """The model that tensors make; see `fit_model`.

    Args:
        tensors: under the names that they have in their file.
        config: the model's, where it is known.
        rename: gives Hugging Face's name of a tensor.
    """
    return fit_model({rename(name): spec.shape for name, spec in tensors.items()}, config)


def first_not_finite(reader: CheckpointReader, on_bytes: Callable[[int], None]) -> str | None:
    """The name of the first tensor with a NaN or an infinity, or None.

    All float tensors are read, at most 64 MiB at a time.

    Args:
        reader: the tensors.
        on_bytes: told the bytes of each block.

    Raises:
        InvalidCheckpointError: a tensor cannot be read.
    """
    for name, spec in reader.tensors.items():
        if spec.dtype not in FLOATS or 0 in spec.shape:
            continue
        rows = spec.shape[0] if spec.shape else 1
        step = max(1, _BLOCK_BYTES * rows // size_of(spec))
        for start in range(0, rows, step):
            block = reader.read(name, (slice(start, start + step),) if spec.shape else ())
            on_bytes(block.nbytes)
            if not np.isfinite(block).all():
                return name
    return None


def _model_values(model: ModelFit) -> dict[str, Any]:
    return {
        "presets": list(model.presets),
        "parameters": model.config.parameter_count,
        **attrs.asdict(model.config),
        "missing": list(model.missing),
        "misshapen": list(model.misshapen),
        "unknown": list(model.unknown),
        "training_state": list(model.state),
    }
