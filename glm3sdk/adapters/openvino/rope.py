"""Rotary position embedding on the first half of each head, as OpenVINO nodes.

The nodes follow the pattern that the CPU plugin fuses into one RoPE: sines and cosines side by
side, each repeated for its pair, `x * cos + (-odd, even) * sin`, and the half that passes
through behind it. A split written another way (`[n, n]` for `[n, -1]`) is not recognised.
"""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset13 as ops

from glm3sdk.adapters.openvino.nodes import ints
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray

_END = 2**31 - 1


def rope_table(config: Glm3Config) -> FloatArray:
    """Sines and cosines `[seq_length, kv_channels / 2]` of every position, the sines first."""
    turned = config.kv_channels // 2
    frequencies = 1.0 / config.rope_base ** (np.arange(0, turned, 2, dtype=np.float64) / turned)
    angles = np.outer(np.arange(config.seq_length), frequencies)
    table: FloatArray = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return table


def rope(x: Node, table: Node, config: Glm3Config) -> Node:
    """Turn heads.

    Args:
        x: `[1, T, heads, kv_channels]`.
        table: rows of `rope_table` for each token, `[1, T, kv_channels / 2]`.
        config: the model's hyper-parameters.
    """
    turned = config.kv_channels // 2
    heads = x.get_output_partial_shape(0)[2].get_length()
    twice = ops.constant(np.repeat(np.arange(turned // 2, dtype=np.int32), 2))
    sin, cos = (
        ops.gather(ops.unsqueeze(half, ints(2)), twice, ops.constant(np.int32(3)))
        for half in ops.variadic_split(table, ints(-1), ints([turned // 2, -1])).outputs()
    )
    first, rest = ops.variadic_split(x, ints(3), ints([turned, -1])).outputs()
    odd, even = (ops.slice(first, ints([at]), ints([_END]), ints([2]), ints([3])) for at in (1, 0))
    negative = ops.multiply(odd, ops.constant(np.float32(-1)))
    pairs = ops.concat([ops.unsqueeze(negative, ints(-1)), ops.unsqueeze(even, ints(-1))], -1)
    swapped = ops.reshape(pairs, ints([0, 0, heads, turned]), special_zero=True)
    return ops.concat([ops.add(ops.multiply(first, cos), ops.multiply(swapped, sin)), rest], -1)
