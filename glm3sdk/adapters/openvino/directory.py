"""A converted model's directory: its file of tensors is mapped, not read.

It is a directory in Hugging Face layout whose config.json says what model.safetensors holds,
and a checkpoint with a manifest. A graph is not stored: it is built at each start from the
config, in a fraction of a second, so that a better one needs no conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

from glm3sdk.adapters.openvino.quantized import require_quantized
from glm3sdk.adapters.storage.directory_files import read_json
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE
from glm3sdk.adapters.storage.safetensors_header import (
    LENGTH_BYTES,
    PlacedTensor,
    header_length,
    parse_header,
)
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import index_ranges

WEIGHTS_FILE = "model.safetensors"

_MARK, _LAYOUT = "glm3sdk_openvino", 1


def marked(config: Mapping[str, Any], quantize: str) -> dict[str, Any]:
    """The values of a config.json with a note of how the weights are stored."""
    values = {name: value for name, value in config.items() if name != "torch_dtype"}
    return {**values, _MARK: {"layout": _LAYOUT, "quantize": quantize}}


def is_converted(path: Path) -> bool:
    """Whether a model's directory has that note.

    Raises:
        InvalidConfigError: it has no config.json that can be read.
    """
    return _MARK in read_json(path / CONFIG_FILE, InvalidConfigError)


def open_converted(path: Path, config: Glm3Config) -> MappedTensors | None:
    """The tensors of a converted model's directory; None for a directory of any other kind.

    Raises:
        InvalidCheckpointError: the layout is a later one, or a tensor is missing or misshapen.
    """
    file = path / CONFIG_FILE
    values = read_json(file, InvalidConfigError)
    if _MARK not in values:
        return None
    mark = values[_MARK]
    layout = mark.get("layout") if isinstance(mark, dict) else None
    if layout != _LAYOUT:
        raise InvalidCheckpointError(
            f"{file}: {_MARK} is of layout {layout!r}, and this glm3sdk reads layout {_LAYOUT}; "
            "upgrade glm3sdk, or convert the model again"
        )
    reader = MappedTensors(path / WEIGHTS_FILE)
    require_quantized(reader, config)
    return reader


class MappedTensors:
    """The tensors of a safetensors file, mapped into memory; a `CheckpointReader`.

    What `read` gives is the file's own pages, so nothing is copied and the system may drop
    them when it needs the memory. They are private: writing to an array changes nothing else.

    Raises:
        InvalidCheckpointError: the file is missing, truncated or of another format.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            with file.open("rb") as opened:
                size = file.stat().st_size
                length = header_length(opened.read(LENGTH_BYTES), size, str(file))
                self._placed: dict[str, PlacedTensor] = parse_header(
                    opened.read(length), size, str(file)
                )
        except OSError as exc:
            raise _unmapped(file, exc) from exc
        self._tensors = {name: placed.spec for name, placed in self._placed.items()}

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """A tensor, or a slice of it (steps of 1); not a copy.

        Raises:
            InvalidCheckpointError: no such tensor, or an index that does not fit it.
        """
        if name not in self._placed:
            raise InvalidCheckpointError(f"{self._file}: no tensor {name!r} in this checkpoint")
        placed = self._placed[name]
        ranges = index_ranges(name, placed.spec.shape, index)
        dtype = numpy_dtype(placed.spec.dtype)
        if placed.start == placed.stop:
            return np.empty(placed.spec.shape, dtype)
        try:
            # "c" is copy-on-write: OpenVINO takes no array that cannot be written to.
            mapped = np.memmap(
                self._file, dtype, mode="c", offset=placed.start, shape=placed.spec.shape
            )
        except (OSError, ValueError) as exc:
            raise _unmapped(self._file, exc) from exc
        whole: HostArray = mapped.view(np.ndarray)
        return whole[tuple(slice(start, stop) for start, stop in ranges)]


def _unmapped(file: Path, reason: Exception) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{file} cannot be mapped into memory: {reason}; convert the model again"
    )
