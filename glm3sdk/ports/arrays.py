"""Arrays that cross a port: plain numpy, no framework's type."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
HostArray: TypeAlias = npt.NDArray[Any]
"""A tensor in host memory; bfloat16 is `ml_dtypes.bfloat16`."""
