"""A model's weights in the form that OpenVINO computes with, tensor by tensor.

A matrix under its Hugging Face name is int8 `[N, K]` with NAME.scale, or two 4-bit values to
a byte, uint8 `[N, K / 2]`, with NAME.scale and NAME.zero_point (see `quantization`); or a
float, where it was not quantised. Norms and biases are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

from glm3sdk.adapters.openvino.quantization import group_size, quantize_int4, quantize_int8
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidCheckpointError, unknown_name
from glm3sdk.ports.arrays import FloatArray, HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec

INT8, INT4, NONE = "int8", "int4", "none"
QUANTIZATIONS = (INT8, INT4, NONE)
SCALE, ZERO_POINT = ".scale", ".zero_point"

_EMBEDDING = "transformer.embedding.word_embeddings.weight"
_FLOAT32 = "float32"
_ROWS = 1 << 24  # values that are read at once


def check_quantization(name: str) -> None:
    """Check the name of a quantisation.

    Raises:
        UnknownNameError: it is none.
    """
    if name not in QUANTIZATIONS:
        raise unknown_name("quantisation", name, QUANTIZATIONS)


def quantized_specs(
    source: Mapping[str, TensorSpec], config: Glm3Config, quantize: str
) -> dict[str, TensorSpec]:
    """What a model's tensors become.

    Args:
        source: the model's own, by Hugging Face's names.
        config: its hyper-parameters.
        quantize: "int8", "int4" or "none".
    """
    specs: dict[str, TensorSpec] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            specs[name] = TensorSpec(shape, _FLOAT32)
            continue
        rows, columns = shape
        group = _group(name, columns, quantize)
        if quantize == NONE:
            specs[name] = TensorSpec(shape, source[name].dtype)
        elif group is None:
            specs[name] = TensorSpec(shape, "int8")
            specs[name + SCALE] = TensorSpec((rows, 1), _FLOAT32)
        else:
            groups = columns // group
            specs[name] = TensorSpec((rows, columns // 2), "uint8")
            specs[name + SCALE] = TensorSpec((rows, groups, 1), "float16")
            specs[name + ZERO_POINT] = TensorSpec(((rows * groups + 1) // 2,), "uint8")
    return specs


def quantized_values(
    source: CheckpointReader,
    config: Glm3Config,
    quantize: str,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[str, HostArray]]:
    """The tensors of `quantized_specs`. In memory at once: one of them, and 64 MiB of floats.

    Args:
        source: the model's own, by Hugging Face's names.
        config: its hyper-parameters.
        quantize: "int8", "int4" or "none".
        on_bytes: told the bytes of each tensor that was made.

    Raises:
        InvalidCheckpointError: a tensor cannot be read, or is not finite.
    """
    for name, shape in config.tensor_shapes().items():
        if quantize == NONE and len(shape) == 2:
            made = {name: source.read(name)}
        elif len(shape) == 1:
            made = {name: _finite(name, source.read(name))}
        else:
            made = _quantized(source, name, shape, _group(name, shape[1], quantize))
        on_bytes(sum(value.nbytes for value in made.values()))
        yield from made.items()
        del made  # or it stays in memory beside the next one


def _quantized(
    source: CheckpointReader, name: str, shape: tuple[int, ...], group: int | None
) -> dict[str, HostArray]:
    """A matrix, quantised some rows at a time."""
    rows, columns = shape
    step = max(2, _ROWS // columns // 2 * 2)  # even, so that packed zero points join
    parts: dict[str, list[HostArray]] = {}
    for start in range(0, rows, step):
        block = _finite(name, source.read(name, (slice(start, min(start + step, rows)),)))
        if group is None:
            wide = quantize_int8(block)
            made: dict[str, HostArray] = {name: wide.values, name + SCALE: wide.scales}
        else:
            small = quantize_int4(block, group)
            made = {
                name: small.values,
                name + SCALE: small.scales,
                name + ZERO_POINT: small.zero_points,
            }
        for key, value in made.items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in parts.items()}


def _group(name: str, columns: int, quantize: str) -> int | None:
    """Columns of an int4 group; None for a matrix that is int8."""
    # Rows of the embedding are looked up one at a time: 4 bits would save no time there.
    return group_size(columns) if quantize == INT4 and name != _EMBEDDING else None


def _finite(name: str, values: HostArray) -> FloatArray:
    floats: FloatArray = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise InvalidCheckpointError(f"tensor {name} has values that are not finite; mend it first")
    return floats


class MemoryTensors:
    """A `CheckpointReader` of tensors in memory."""

    def __init__(self, tensors: Mapping[str, HostArray]) -> None:
        self._values = tensors
        self._tensors = {
            name: TensorSpec(value.shape, value.dtype.name) for name, value in tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """A tensor, or a slice of it; not a copy."""
        if name not in self._values:
            raise InvalidCheckpointError(f"no tensor {name!r} in this checkpoint")
        return self._values[name][index]


def quantized_in_memory(
    source: CheckpointReader, config: Glm3Config, quantize: str
) -> CheckpointReader:
    """A model that was not converted before, quantised into memory."""
    return MemoryTensors(dict(quantized_values(source, config, quantize)))


def quantization_of(tensors: Mapping[str, TensorSpec]) -> str:
    """Which quantisation a model's tensors have: "int4" where any matrix has it."""
    if any(name.endswith(ZERO_POINT) for name in tensors):
        return INT4
    return INT8 if any(name.endswith(SCALE) for name in tensors) else NONE


def require_quantized(reader: CheckpointReader, config: Glm3Config) -> None:
    """Check that a converted model's tensors are all there, as its config asks for.

    Raises:
        InvalidCheckpointError: one is missing, or of another shape or dtype.
    """
    expected = quantized_specs(
        {name: reader.tensors.get(name, TensorSpec((), "")) for name in config.tensor_shapes()},
        config,
        quantization_of(reader.tensors),
    )
    for name, spec in expected.items():
        found = reader.tensors.get(name)
        if found != spec:
            has = f"{found.dtype} {list(found.shape)}" if found else "missing"
            raise InvalidCheckpointError(
                f"tensor {name} is {has} and config.json asks for {spec.dtype} "
                f"{list(spec.shape)}; are both of one conversion? Convert the model again"
            )
