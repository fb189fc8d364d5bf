"""What every checkpoint store checks: file names, values against their specs, slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, host_array, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec

TENSOR_SUFFIX = ".safetensors"
FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = (
    *FLOATS,
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    "bool",
)


def check_file_name(file: str, *, tensors: bool, taken: Iterable[str]) -> None:
    """Check the name of a file that is about to be added to a checkpoint.

    Args:
        file: the name.
        tensors: whether it will hold tensors.
        taken: names that the checkpoint has already, or keeps for itself.

    Raises:
        InvalidCheckpointError: not a plain name, taken, or of the other kind.
    """
    if not is_plain_name(file):
        raise InvalidCheckpointError(
            f"{file!r} is not a plain file name; pass a name without a directory, "
            "not hidden by a leading dot"
        )
    if tensors != file.endswith(TENSOR_SUFFIX):
        raise InvalidCheckpointError(
            f"{file!r}: tensors, and nothing else, go to a name that ends in {TENSOR_SUFFIX}"
        )
    if file in taken:
        raise InvalidCheckpointError(f"{file!r} is taken; give each file another name")


def is_plain_name(file: str) -> bool:
    """Whether a name stays in its directory: no separator, no leading dot."""
    return bool(file) and file[0] != "." and not any(char in file for char in "/\\\0")


def check_specs(file: str, specs: Mapping[str, TensorSpec], placed: Mapping[str, str]) -> None:
    """Check what a file of tensors is going to hold.

    Args:
        file: its name.
        specs: its tensors.
        placed: the tensors that the checkpoint has already, each with its file.

    Raises:
        InvalidCheckpointError: a shape, a dtype or a name that cannot be stored.
    """
    for name, spec in specs.items():
        if name in placed:
            raise InvalidCheckpointError(
                f"tensor {name} is both in {placed[name]} and in {file}; write it once"
            )
        if spec.dtype not in DTYPES:
            raise InvalidCheckpointError(
                f"{file}: tensor {name} is {spec.dtype}; store it as one of {', '.join(DTYPES)}"
            )
        if any(not isinstance(size, int) or size < 0 for size in spec.shape):
            raise InvalidCheckpointError(
                f"{file}: tensor {name} has shape {spec.shape!r}; sizes are integers from 0"
            )


def checked_values(
    file: str, specs: Mapping[str, TensorSpec], values: Iterable[tuple[str, HostArray]]
) -> Iterator[tuple[str, HostArray]]:
    """Pass values on, each checked, and check at the end that none is missing.

    Raises:
        InvalidCheckpointError: a value is unknown, given twice, missing, of another shape,
            or of a dtype that does not convert.
    """
    missing = dict.fromkeys(specs)
    for name, value in values:
        if name not in specs:
            raise InvalidCheckpointError(f"{file}: tensor {name} is not in the specs; add it")
        if name not in missing:
            raise InvalidCheckpointError(f"{file}: tensor {name} is given twice; give it once")
        del missing[name]
        spec, found = specs[name], value.dtype.name
        if value.shape != spec.shape:
            raise InvalidCheckpointError(
                f"{file}: tensor {name} has shape {list(value.shape)} and its spec says "
                f"{list(spec.shape)}"
            )
        if found != spec.dtype and not (found in FLOATS and spec.dtype in FLOATS):
            raise InvalidCheckpointError(
                f"{file}: tensor {name} is {found} and its spec says {spec.dtype}; "
                "only floats are converted, to floats"
            )
        yield name, value
    if missing:
        names = list(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InvalidCheckpointError(
            f"{file}: no value was given for tensor {', '.join(names[:3])}{more}"
        )


def converted(file: str, name: str, values: HostArray, dtype: str) -> HostArray:
    """Values in a stored dtype.

    Raises:
        InvalidCheckpointError: a finite value would become infinite.
    """
    try:
        with np.errstate(over="raise"):
            return host_array(values).astype(numpy_dtype(dtype), copy=False)
    except FloatingPointError as exc:
        raise InvalidCheckpointError(
            f"{file}: tensor {name} has values that {dtype} cannot hold; store it as float32"
        ) from exc


def index_ranges(
    name: str, shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[tuple[int, int], ...]:
    """The start and stop of a slice in every dimension.

    Raises:
        InvalidCheckpointError: more slices than dimensions, or steps other than 1.
    """
    if len(index) > len(shape) or any(part.step not in (None, 1) for part in index):
        raise InvalidCheckpointError(
            f"tensor {name} of shape {list(shape)} cannot be read by {index!r}; "
            "pass at most one slice a dimension, with steps of 1"
        )
    full = index + (slice(None),) * (len(shape) - len(index))
    bounds = [part.indices(size)[:2] for part, size in zip(full, shape, strict=True)]
    return tuple((start, max(start, stop)) for start, stop in bounds)
