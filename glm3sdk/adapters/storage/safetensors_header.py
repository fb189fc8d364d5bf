"""The header of a safetensors file, read without the library, which opens local files alone.

The format: the header's length as 8 bytes little-endian, the header as JSON, the tensors'
bytes one after another (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from typing import Any

import attrs
import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"

from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import DTYPES

LENGTH_BYTES = 8
# The format's own bound.
MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"

# The format's own names: BF16, F32, I64, U8, BOOL.
CODES = {
    dtype: "BF16"
    if dtype == "bfloat16"
    else dtype.upper().replace("FLOAT", "F").replace("UINT", "U").replace("INT", "I")
    for dtype in DTYPES
}
NAMES = {code: dtype for dtype, code in CODES.items()}


@attrs.frozen
class PlacedTensor:
    """A tensor of a file: what it is, and where its bytes `[start, stop)` are in the file."""

    spec: TensorSpec
    start: int
    stop: int


def header_length(start: bytes, size: int, file: str) -> int:
    """The length of the header, from the first bytes of a file.

    Args:
        start: at least its first 8 bytes, where it has so many.
        size: of the file.
        file: its name, for messages.

    Raises:
        InvalidCheckpointError: the header does not fit into the file, or is larger than the
            format allows.
    """
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise _invalid(file, f"its header does not fit into its {size} bytes")
    if length > MAX_HEADER_BYTES:
        raise _invalid(file, f"its header has {length} bytes, more than the format allows")
    return length


def parse_header(header: bytes, size: int, file: str) -> dict[str, PlacedTensor]:
    """Read a header and check what the library checks: every byte belongs to one tensor.

    Args:
        header: without the 8 bytes of its length.
        size: of the file.
        file: its name, for messages.

    Returns:
        Every tensor by its name. A dtype that is not known keeps the format's name, in lower
        case, as with `read_specs`.

    Raises:
        InvalidCheckpointError: it is not a header, or does not fit the file.
    """
    try:
        content = json.loads(header.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise _invalid(file, f"its header is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise _invalid(file, "its header is not an object")
    data = LENGTH_BYTES + len(header)
    content.pop(METADATA, None)
    placed = {name: _tensor(file, name, entry, data) for name, entry in content.items()}
    end = data
    for name, tensor in sorted(placed.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            raise _invalid(file, f"tensor {name} does not begin where the one before it ends")
        end = tensor.stop
    if end != size:
        raise _invalid(file, f"its tensors end at {end} and it has {size} bytes")
    return placed


def _tensor(file: str, name: str, entry: Any, data: int) -> PlacedTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _invalid(file, f"tensor {name} has no dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise _invalid(file, f"tensor {name} has no dtype, shape and data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(file, f"tensor {name} has the data_offsets {offsets}")
    dtype, length = NAMES.get(code), offsets[1] - offsets[0]
    if dtype is not None and length != math.prod(shape) * numpy_dtype(dtype).itemsize:
        raise _invalid(file, f"tensor {name} is {code} {shape} and takes {length} bytes")
    spec = TensorSpec(tuple(shape), dtype or code.lower())
    return PlacedTensor(spec, data + offsets[0], data + offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def _invalid(file: str, what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{file} is truncated or not safetensors: {what}; use another checkpoint or write it again"
    )
