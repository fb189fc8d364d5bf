"""Small nodes that every part of the graph uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from openvino import Node, Output
from openvino import opset13 as ops

from glm3sdk.ports.arrays import FloatArray

Linear = Callable[[Node, str], Node]
"""`x @ weight^T` with a matrix of the model, given by its Hugging Face name."""


def ints(values: int | Sequence[int]) -> Node:
    """A constant of shapes, axes or sizes."""
    return ops.constant(np.array(values, np.int64))


def rms_norm(x: Node | Output, scale: FloatArray, epsilon: float) -> Node:
    """RMSNorm over the last axis: `x / sqrt(mean(x^2) + epsilon) * scale`."""
    mean = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), ints([-1]), keep_dims=True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.float32(epsilon))))
    return ops.multiply(ops.multiply(x, ops.divide(np.float32(1), root)), ops.constant(scale))
