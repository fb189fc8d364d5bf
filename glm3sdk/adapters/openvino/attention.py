"""Grouped-query attention over a paged kv_cache.

OpenVINO's PagedAttentionExtension (https://github.com/openvinotoolkit/openvino, experimental)
takes the new tokens of several sequences one behind another, writes their keys and values
into blocks of the cache, and lets each token see its own sequence up to itself.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
from openvino import Node
from openvino import opset13 as ops
from openvino.op import Parameter, _PagedAttentionExtension

from glm3sdk.adapters.openvino.nodes import Linear, ints
from glm3sdk.adapters.openvino.rope import rope
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray

# A block of the cache holds so many tokens; the CPU plugin knows no other size.
BLOCK_TOKENS = 32


@attrs.frozen(eq=False)
class Batch:
    """The inputs that say which sequences the new tokens belong to, all int32.

    Attributes:
        past_lengths: `[S]`, tokens that each sequence holds already.
        begins: `[S + 1]`, where each one's new tokens begin, and the number of new tokens.
        blocks: `[N]`, the cache's blocks of every sequence, one sequence behind another.
        block_begins: `[S + 1]`, where each one's blocks begin.
        longest: scalar, the most tokens that any holds afterwards.
    """

    past_lengths: Parameter
    begins: Parameter
    blocks: Parameter
    block_begins: Parameter
    longest: Parameter


def attention(
    x: Node,
    config: Glm3Config,
    *,
    linear: Linear,
    bias: FloatArray,
    prefix: str,
    table: Node,
    tokens: Node,
    batch: Batch,
    caches: tuple[Parameter, Parameter],
) -> Node:
    """Self-attention of one layer, `[1, T, hidden]` to `[1, T, hidden]`.

    Args:
        x: the layer's normalised input.
        config: the model's hyper-parameters.
        linear: multiplies by a matrix.
        bias: of query_key_value.
        prefix: of this layer's names, up to "self_attention.".
        table: sines and cosines of the tokens' positions.
        tokens: 1 and T, the shape of the tokens.
        batch: which sequences the tokens belong to.
        caches: keys and values.
    """
    heads, groups = config.num_attention_heads, config.multi_query_group_num
    width = config.kv_channels
    mixed = ops.add(linear(x, prefix + "query_key_value.weight"), ops.constant(bias))
    query, key, value = ops.variadic_split(
        mixed, ints(-1), ints([heads * width, groups * width, groups * width])
    ).outputs()
    query = rope(ops.reshape(query, ints([0, 0, heads, width]), True), table, config)
    key = rope(ops.reshape(key, ints([0, 0, groups, width]), True), table, config)
    attended = _PagedAttentionExtension(
        [
            *(
                ops.reshape(each, ints([-1, count * width]), False).output(0)
                for each, count in ((query, heads), (key, groups), (value, groups))
            ),
            *(each.output(0) for each in caches),
            *(
                each.output(0)
                for each in (batch.past_lengths, batch.begins, batch.blocks, batch.block_begins)
            ),
            ops.constant(np.float32(1 / math.sqrt(width))).output(0),
            *(each.output(0) for each in _unused(batch.longest)),
        ]
    )
    # The plugin lays the cache out by what it finds noted here.
    notes = attended.get_rt_info()
    for part in ("k", "v"):
        notes[f"num_{part}_heads"], notes[f"{part}_head_size"] = groups, width
    shape = ops.concat([tokens, ints([heads * width])], 0)
    rows = ops.reshape(attended.output(0), shape, False)
    return linear(rows, prefix + "dense.weight")


def _unused(longest: Node) -> list[Node]:
    """Inputs 10 to 27: the longest context, and what ChatGLM3 does not have."""
    zero, none = ops.constant(np.int32(0)), ops.constant(np.empty(0, np.int32))
    no_floats = ops.constant(np.empty(0, np.float32))
    return [
        zero,  # a sliding window
        no_floats,  # slopes of ALiBi
        longest,
        *(none, none, none, no_floats),  # scores that are summed up; blocks that rotate
        *(no_floats, zero, zero),  # blocks that are skipped
        ops.constant(np.empty((0, 0, 0, 0), np.float32)),  # sinks
        *(zero, none, none, none, none),  # blocks that are dropped; kinds of tokens
        *(ops.constant(np.empty(0, np.uint8)), none),  # masks among the queries
    ]
