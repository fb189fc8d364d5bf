"""Arrays that cross a port: plain numpy, no framework's type."""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
HostArray: TypeAlias = npt.NDArray[Any]
"""A tensor in host memory; bfloat16 is `ml_dtypes.bfloat16`."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of host arrays by its name.

    `np.dtype("bfloat16")` will not do: MindSpore gives that name to a type of its own, whoever
    imports it, and numpy converts neither to the other.
    """
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def host_array(values: HostArray) -> HostArray:
    """An array as ours: bfloat16 of another library's type becomes `ml_dtypes.bfloat16`."""
    ours = numpy_dtype("bfloat16")
    if values.dtype.name == ours.name and values.dtype != ours:
        return values.view(ours)
    return values
