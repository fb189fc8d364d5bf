"""SwiGLU: `silu(gate) * value` between two linear layers."""

from __future__ import annotations

from openvino import Node
from openvino import opset13 as ops

from glm3sdk.adapters.openvino.nodes import Linear, ints
from glm3sdk.domain.model import Glm3Config


def feed_forward(x: Node, config: Glm3Config, *, linear: Linear, prefix: str) -> Node:
    """The feed-forward part of one layer, `[1, T, hidden]` to `[1, T, hidden]`."""
    both = linear(x, prefix + "dense_h_to_4h.weight")
    gate, value = ops.variadic_split(both, ints(-1), ints([config.ffn_hidden_size, -1])).outputs()
    return linear(ops.multiply(ops.swish(gate), value), prefix + "dense_4h_to_h.weight")
