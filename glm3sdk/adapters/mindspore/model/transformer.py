"""Decoder layers and the whole model, without the attention core.

Decode, prefill and training differ only in how queries meet keys; they share these cells
and put their own core between `project` and `finish`.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.collectives import (
    ColumnParallel,
    GatherColumns,
    Group,
    RowParallel,
    SplitEmbedding,
)
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
        ranks: Group | None,
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

        def some_outputs(layer: nn.Cell) -> nn.Cell:
            return layer if ranks is None else ColumnParallel(layer, ranks)

        def some_inputs(layer: nn.Cell) -> nn.Cell:
            return layer if ranks is None else RowParallel(layer, ranks)

        self.input_layernorm = norm("input_layernorm")
        self.query_key_value = some_outputs(linear("self_attention.query_key_value", bias=True))
        dense = linear("self_attention.dense")
        self.dense = some_inputs(dense)
        self.post_attention_layernorm = norm("post_attention_layernorm")
        self.mlp = FeedForward(
            some_outputs(linear("mlp.dense_h_to_4h")),
            some_inputs(linear("mlp.dense_4h_to_h")),
            fused=profile.fused_swiglu,
        )
        self.rope = Rope(config, dtype=dense.weight.dtype, fused=profile.fused_rope)

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
    """Embedding, layers, final norm and output layer.

    Args:
        config: what these cells compute: of a model that is split, this rank's share.
        profile: whose kernels to use.
        weights: gives each Parameter.
        adapt: gives the cell in each linear layer's place.
        ranks: those that share each layer; None for this one alone.
    """

    def __init__(
        self,
        config: Glm3Config,
        profile: DeviceProfile,
        weights: Weights,
        *,
        adapt: Adapt = _unadapted,
        ranks: Group | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.word_embeddings = weights("transformer.embedding.word_embeddings.weight")
        self.layers = nn.CellList(
            [
                DecoderLayer(
                    config, profile, weights, f"transformer.encoder.layers.{index}.", adapt, ranks
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
        output_layer = Linear(weights("transformer.output_layer.weight"))
        self.output_layer = output_layer
        self.gather = ops.Gather()
        self.split = ranks is not None
        if ranks is not None:
            self.embedding = SplitEmbedding(self.word_embeddings, ranks)
            self.output_layer = ColumnParallel(output_layer, ranks)
            self.gather_columns = GatherColumns(ranks)

    def embed(self, input_ids: Tensor) -> Tensor:
        """input_ids `[N]` to `[N, hidden]`."""
        if self.split:
            return self.embedding(input_ids)
        return self.gather(self.word_embeddings, input_ids, 0)

    def logits(self, x: Tensor) -> Tensor:
        """x `[N, hidden]` to float32 logits `[N, V]`, of this rank's share of the vocabulary."""
        return ops.cast(self.output_layer(self.final_layernorm(x)), ms.float32)

    def every_logit(self, x: Tensor) -> Tensor:
        """x `[N, hidden]` to float32 logits `[N, V]` of the whole vocabulary, on every rank."""
        logits = self.logits(x)
        if self.split:
            logits = self.gather_columns(logits)
        return logits
