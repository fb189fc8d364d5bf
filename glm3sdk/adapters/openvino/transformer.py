"""The whole of ChatGLM3 as an OpenVINO model, built straight from its tensors."""

from __future__ import annotations

from openvino import Model, Node, PartialShape, Type
from openvino import opset13 as ops
from openvino.op import Parameter

from glm3sdk.adapters.openvino.attention import Batch, attention
from glm3sdk.adapters.openvino.feed_forward import feed_forward
from glm3sdk.adapters.openvino.nodes import ints, rms_norm
from glm3sdk.adapters.openvino.rope import rope_table
from glm3sdk.adapters.openvino.weights import Constants
from glm3sdk.domain.model import Glm3Config

KEYS, VALUES = "keys", "values"


def build_model(config: Glm3Config, constants: Constants) -> Model:
    """Build the graph. Tokens of several sequences lie one behind another: T of them.

    Its inputs are `input_ids` and `positions` `[1, T]`, `wanted` `[W]` (the tokens whose logits
    are asked for), those of `attention.Batch`, and for each layer the cache's `keys.N` and
    `values.N`. Its first output is the logits `[W, V]`.

    Args:
        config: the model's hyper-parameters.
        constants: its weights.
    """
    # The leading axis is 1 and must not be known to be: the plugin would simplify the nodes of
    # rope and no longer recognise them.
    ids, positions = (_input(name, [-1, -1]) for name in ("input_ids", "positions"))
    wanted = _input("wanted", [-1])
    batch = Batch(
        past_lengths=_input("past_lengths", [-1]),
        begins=_input("begins", [-1]),
        blocks=_input("blocks", [-1]),
        block_begins=_input("block_begins", [-1]),
        longest=_input("longest", []),
    )
    caches = [
        (_cache(f"{KEYS}.{layer}"), _cache(f"{VALUES}.{layer}"))
        for layer in range(config.num_layers)
    ]
    tokens = ops.shape_of(ids)
    embedding = constants.matrix("transformer.embedding.word_embeddings.weight")
    x = ops.gather(embedding, ids, ints(0))
    table = ops.gather(ops.constant(rope_table(config)), positions, ints(0))

    def norm(x: Node, name: str) -> Node:
        return rms_norm(x, constants.vector(name), config.layernorm_epsilon)

    for layer in range(config.num_layers):
        prefix = f"transformer.encoder.layers.{layer}."
        attended = attention(
            norm(x, prefix + "input_layernorm.weight"),
            config,
            linear=constants.linear,
            bias=constants.vector(prefix + "self_attention.query_key_value.bias"),
            prefix=prefix + "self_attention.",
            table=table,
            tokens=tokens,
            batch=batch,
            caches=caches[layer],
        )
        x = ops.add(x, attended)
        normed = norm(x, prefix + "post_attention_layernorm.weight")
        fed = feed_forward(normed, config, linear=constants.linear, prefix=prefix + "mlp.")
        x = ops.add(x, fed)
    x = norm(x, "transformer.encoder.final_layernorm.weight")
    chosen = ops.gather(ops.reshape(x, ints([-1, config.hidden_size]), False), wanted, ints(0))
    logits = ops.result(constants.linear(chosen, "transformer.output_layer.weight"))
    inputs = [ids, positions, wanted]
    inputs += [batch.past_lengths, batch.begins, batch.blocks, batch.block_begins, batch.longest]
    return Model([logits], [*inputs, *(each for pair in caches for each in pair)], "chatglm3")


def _input(name: str, shape: list[int]) -> Parameter:
    return _named(ops.parameter(PartialShape(shape), Type.i32), name)


def _cache(name: str) -> Parameter:
    """Keys or values of a layer; the plugin chooses their layout and element type."""
    return _named(ops.parameter(PartialShape([-1, -1, -1, -1]), Type.dynamic), name)


def _named(parameter: Parameter, name: str) -> Parameter:
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter
