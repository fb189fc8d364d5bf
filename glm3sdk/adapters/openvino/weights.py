"""Weights as OpenVINO constants, in the patterns that the CPU plugin keeps compressed."""

from __future__ import annotations

import numpy as np
from openvino import Node, Shape, Tensor, Type
from openvino import opset13 as ops
from openvino.op import Constant

from glm3sdk.adapters.openvino.nodes import ints
from glm3sdk.adapters.openvino.quantization import unpack
from glm3sdk.adapters.openvino.quantized import SCALE, ZERO_POINT
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray, HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader

# An int8 matrix has one scale a row; this was the fastest.
_INT8_GROUP = 4096


class Constants:
    """Makes constants of a converted model's tensors, without a copy where that can be.

    OpenVINO takes the arrays' memory as it is and does not keep them alive: keep this as long
    as what is compiled from it.

    Args:
        reader: the tensors, as `quantized` has them.
        config: the model's hyper-parameters.
        multiplies_bytes: whether the processor's kernels quantise activations. Those that unpack
            weights to float32 take half the time without zero points, so these are taken off
            the product there: `x @ (s (q - z))` is `x @ (s q)` less the sums of x by groups
            times `s z`.
    """

    def __init__(
        self, reader: CheckpointReader, config: Glm3Config, *, multiplies_bytes: bool
    ) -> None:
        self._reader, self._shapes = reader, config.tensor_shapes()
        self._multiplies_bytes = multiplies_bytes
        self._held: list[HostArray] = []
        self._groups: set[int] = set()

    @property
    def activation_group(self) -> int:
        """Activations that the kernels may quantise together; 0 is not at all.

        More than a group of the weights, or a size left to the plugin, is slow without a word.
        """
        return min(self._groups, default=0) if self._multiplies_bytes else 0

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32."""
        return self._reader.read(name).astype(np.float32)

    def matrix(self, name: str) -> Node:
        """A matrix `[rows, columns]` as a float32 node."""
        if self._has_four_bits(name):
            return self._four_bits(name)
        values = self._reader.read(name)
        if values.dtype == np.int8:
            self._groups.add(_INT8_GROUP)
            scales = ops.constant(self.vector(name + SCALE))
            return ops.multiply(ops.convert(self._constant(values), "f32"), scales)
        return self._constant(np.require(values.astype(np.float32, copy=False), requirements="A"))

    def linear(self, x: Node, name: str) -> Node:
        """`x @ weight^T` with a matrix, float32."""
        if self._has_four_bits(name) and not self._multiplies_bytes:
            return self._less_sums(x, name)
        return _product(x, self.matrix(name))

    def _less_sums(self, x: Node, name: str) -> Node:
        scales = self._reader.read(name + SCALE)
        offsets = (scales * self._zero_points(name, scales).astype(np.float32))[..., 0]
        groups = offsets.shape[1]
        before = [0] * (len(x.get_output_partial_shape(0)) - 1)  # as they are
        parts = ops.reshape(x, ints([*before, groups, -1]), True)
        sums = ops.reduce_sum(parts, ints([-1]), keep_dims=False)
        product = _product(x, self._four_bits(name, centred=False))
        return ops.subtract(product, _product(sums, self._constant(offsets)))

    def _has_four_bits(self, name: str) -> bool:
        return self._reader.tensors[name].dtype == "uint8"

    def _four_bits(self, name: str, *, centred: bool = True) -> Node:
        """The matrix, or the matrix before its zero points are taken off."""
        rows, columns = self._shapes[name]
        scales = self._reader.read(name + SCALE)
        groups = scales.shape[1]
        self._groups.add(columns // groups)
        values = self._packed(self._reader.read(name), [rows, groups, columns // groups])
        node = ops.convert(values, "f16")
        if centred:
            points = self._constant(self._zero_points(name, scales))
            node = ops.subtract(node, ops.convert(points, "f16"))
        scaled = ops.multiply(node, self._constant(np.require(scales, requirements="A")))
        return ops.convert(ops.reshape(scaled, ints([rows, columns]), False), "f32")

    def _zero_points(self, name: str, scales: HostArray) -> HostArray:
        # A byte each: the plugin would unpack them too, and takes twenty times as long.
        packed = self._reader.read(name + ZERO_POINT)
        return unpack(packed, scales.size).reshape(scales.shape)

    def _constant(self, values: HostArray) -> Node:
        # Through a Tensor: a constant that is given the array itself holds on to it, and lets
        # go of it whenever it likes, on any thread.
        self._held.append(values)
        return Constant(Tensor(values, shared_memory=True), shared_memory=True)

    def _packed(self, values: HostArray, shape: list[int]) -> Node:
        """Two 4-bit values a byte."""
        self._held.append(values)
        return Constant(Tensor(values.reshape(-1), Shape(shape), Type.u4), shared_memory=True)


def _product(x: Node, weight: Node) -> Node:
    return ops.matmul(x, weight, transpose_a=False, transpose_b=True)
