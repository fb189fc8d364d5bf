"""Decoder layers and the whole model, without the attention core.

Decode, prefill and training differ only in how queries meet keys; they share these cells
and put their own core between `project` and `finish`.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.feed_forward import FeedForward
from glm3sdk.adapters.mindspore.model.linear import Linear
from glm3sdk.adapters.mindspore.model.norm import RmsNorm
from glm3sdk.adapters.mindspore.model.rope import Rope
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.model import Glm3Config

Weights = Callable[[str], Parameter]
"""Gives the Parameter of a Hugging Face name."""

Adapt = Callable[[Linear], nn.Cell]
"""Gives the cell to use in a linear layer's place: the layer itself, or one with an adapter."""


def _unadapted(linear: Linear) -> nn.Cell:
    return linear


class DecoderLayer(nn.Cell):
    """One pre-norm layer: attention and feed-forward, each added to the residual.

    No cell here prefixes names: a Parameter keeps its Hugging Face name.
    """

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        weights: Weights,
        prefix: str,
        adapt: Adapt,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.heads = config.num_attention_heads
        self.groups = config.multi_query_group_num
        self.channels = config.kv_channels
        self.turned = self.heads + self.groups
        self.turned_width = self.turned * self.channels
        self.value_width = self.groups * self.channels

        def linear(name: str, *, bias: bool = False) -> nn.Cell:
            weight = weights(f"{prefix}{name}.weight")
            return adapt(Linear(weight, weights(f"{prefix}{name}.bias") if bias else None))

        def norm(name: str) -> RmsNorm:
            return RmsNorm(
                weights(f"{prefix}{name}.weight"),
                epsilon=config.layernorm_epsilon,
                fused=profile.fused_norm,
            )

        self.input_layernorm = norm("input_layernorm")
        self.query_key_value = linear("self_attention.query_key_value", bias=True)
        self.dense = linear("self_attention.dense")
        self.post_attention_layernorm = norm("post_attention_layernorm")
        self.mlp = FeedForward(
            linear("mlp.dense_h_to_4h"), linear("mlp.dense_4h_to_h"), fused=profile.fused_swiglu
        )
        self.rope = Rope(config, dtype=self.dense.weight.dtype, fused=profile.fused_rope)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x `[N, hidden]` to turned queries `[N, H, D]`, turned keys and values `[N, G, D]`."""
        qkv = self.query_key_value(self.input_layernorm(x))
        # `ops.slice` costs half of what subscripts (StridedSlice) do on CPU.
        rows = qkv.shape[0]
        heads = ops.slice(qkv, (0, 0), (rows, self.turned_width))
        heads = self.rope(heads.reshape((-1, self.turned, self.channels)), cos, sin)
        query = ops.slice(heads, (0, 0, 0), (rows, self.heads, self.channels))
        key = ops.slice(heads, (0, self.heads, 0), (rows, self.groups, self.channels))
        value = ops.slice(qkv, (0, self.turned_width), (rows, self.value_width))
        return query, key, value.reshape((-1, self.groups, self.channels))

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """Add attention's context `[N, H x D]` and the feed-forward layer to x."""
        x = x + self.dense(context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Glm3Cells(nn.Cell):
    """Embedding, layers, final norm and output layer."""

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        weights: Weights,
        *,
        adapt: Adapt = _unadapted,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.word_embeddings = weights("transformer.embedding.word_embeddings.weight")
        self.layers = nn.CellList(
            [
                DecoderLayer(
                    config, profile, weights, f"transformer.encoder.layers.{index}.", adapt
                )
                for index in range(config.num_layers)
            ],
            auto_prefix=False,
        )
        self.final_layernorm = RmsNorm(
            weights("transformer.encoder.final_layernorm.weight"),
            epsilon=config.layernorm_epsilon,
            fused=profile.fused_norm,
        )
        self.output_layer = Linear(weights("transformer.output_layer.weight"))
        self.gather = ops.Gather()

    def embed(self, input_ids: Tensor) -> Tensor:
        """input_ids `[N]` to `[N, hidden]`."""
        return self.gather(self.word_embeddings, input_ids, 0)

    def logits(self, x: Tensor) -> Tensor:
        """x `[N, hidden]` to float32 logits `[N, V]`."""
        return ops.cast(self.output_layer(self.final_layernorm(x)), ms.float32)
