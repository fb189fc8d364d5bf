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
    """

    def __init__(self, reader: CheckpointReader, config: Glm3Config) -> None:
        self._reader, self._shapes = reader, config.tensor_shapes()
        self._held: list[HostArray] = []
        self._groups: set[int] = set()

    @property
    def activation_group(self) -> int:
        """Activations that the kernels may quantise together; 0 is not at all.

        More than a group of the weights, or a size left to the plugin, is slow without a word.
        """
        return min(self._groups, default=0)

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32."""
        return self._reader.read(name).astype(np.float32)

    def matrix(self, name: str) -> Node:
        """A matrix `[rows, columns]` as a float32 node."""
        values = self._reader.read(name)
        if values.dtype == np.int8:
            self._groups.add(_INT8_GROUP)
            scales = ops.constant(self.vector(name + SCALE))
            return ops.multiply(ops.convert(self._constant(values), "f32"), scales)
        if values.dtype == np.uint8:
            return self._four_bits(name, values)
        return self._constant(np.require(values.astype(np.float32, copy=False), requirements="A"))

    def _four_bits(self, name: str, values: HostArray) -> Node:
        rows, columns = self._shapes[name]
        scales = self._reader.read(name + SCALE)
        groups = scales.shape[1]
        self._groups.add(columns // groups)
        # A byte each: the plugin would unpack them too, and takes twenty times as long.
        zeros = unpack(self._reader.read(name + ZERO_POINT), rows * groups)
        packed = self._packed(values, [rows, groups, columns // groups])
        points = self._constant(zeros.reshape(rows, groups, 1))
        centred = ops.subtract(ops.convert(packed, "f16"), ops.convert(points, "f16"))
        scaled = ops.multiply(centred, ops.constant(np.array(scales)))
        return ops.convert(ops.reshape(scaled, ints([rows, columns]), False), "f32")

    def _constant(self, values: HostArray) -> Node:
        # Through a Tensor: a constant that is given the array itself holds on to it, and lets
        # go of it whenever it likes, on any thread.
        self._held.append(values)
        return Constant(Tensor(values, shared_memory=True), shared_memory=True)

    def _packed(self, values: HostArray, shape: list[int]) -> Node:
        """Two 4-bit values a byte."""
        self._held.append(values)
        return Constant(Tensor(values.reshape(-1), Shape(shape), Type.u4), shared_memory=True)
