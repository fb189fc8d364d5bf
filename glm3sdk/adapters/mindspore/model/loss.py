"""The training loss: next-token cross-entropy over labels that are already shifted."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.attention import training_attention
from glm3sdk.adapters.mindspore.model.collectives import Group, SplitCrossEntropy
from glm3sdk.adapters.mindspore.model.rope import rope_tables
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.domain.model import Glm3Config


class CrossEntropy(nn.Cell):
    """Weighted sum of the labels' negative log-likelihoods.

    Its gradient is written out, `(softmax - onehot) * weight`: on CPU, what MindSpore derives
    (a scatter into zeros, then LogSoftmax's own gradient) takes more than twice as long.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.log_softmax = ops.LogSoftmax(-1)
        self.softmax = ops.Softmax(-1)
        self.gather_label = ops.GatherD()
        self.one_hot = ops.OneHot()
        self.one = Tensor(1.0, ms.float32)
        self.zero = Tensor(0.0, ms.float32)

    def construct(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Logits `[N, V]`, labels `[N]` all in the vocabulary, weights `[N]`; returns `[]`."""
        chosen = self.gather_label(self.log_softmax(logits), 1, labels.expand_dims(1))
        return -(chosen * weights.expand_dims(1)).sum()

    def bprop(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        out: Tensor,  # noqa: ARG002  # MindSpore hands it to every bprop
        dout: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the logits; none is asked of labels and weights."""
        one_hot = self.one_hot(labels, logits.shape[1], self.one, self.zero)
        gradient = (self.softmax(logits) - one_hot) * (weights * dout).expand_dims(1)
        return gradient, ops.zeros_like(labels), ops.zeros_like(weights)


class CausalLoss(nn.Cell):
    """Sum of the negative log-likelihoods of the labels, times a weight.

    All sequences of a batch have the same length; padding stands on the right, where
    causal attention keeps it from the tokens before it.
    """

    def __init__(
        self,
        config: Glm3Config,
        cells: Glm3Cells,
        *,
        fused_attention: bool,
        seq_length: int,
        ranks: Group | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.model = cells
        self.layers = cells.layers
        self.heads = config.num_attention_heads
        self.groups = config.multi_query_group_num
        self.channels = config.kv_channels
        self.context_width = self.heads * self.channels
        self.seq_length = seq_length
        dtype = cells.word_embeddings.dtype
        cos, sin = rope_tables(config, seq_length)
        self.cos = Tensor(cos[None, :, None]).astype(dtype)
        self.sin = Tensor(sin[None, :, None]).astype(dtype)
        self.attention = training_attention(
            config, fused=fused_attention, dtype=dtype, seq_length=seq_length
        )
        self.transpose = ops.Transpose()
        self.split = ranks is not None
        self.cross_entropy = (
            CrossEntropy()
            if ranks is None
            else SplitCrossEntropy(ranks, columns=config.padded_vocab_size)
        )

    def construct(self, input_ids: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """input_ids and labels `[B, T]`, weight `[]`; returns a float32 scalar."""
        batch = input_ids.shape[0]
        rows = (batch * self.seq_length, 1, self.channels)
        cos = ops.tile(self.cos, (batch, 1, 1, 1)).reshape(rows)
        sin = ops.tile(self.sin, (batch, 1, 1, 1)).reshape(rows)
        x = self.model.embed(input_ids.reshape((-1,)))
        for layer in self.layers:
            query, key, value = layer.project(x, cos, sin)
            context = self.attention(
                self._by_head(query, batch, self.heads),
                self._by_head(key, batch, self.groups),
                self._by_head(value, batch, self.groups),
            )
            context = self.transpose(context, (0, 2, 1, 3)).reshape((-1, self.context_width))
            x = layer.finish(x, context)
        labels = labels.reshape((-1,))
        counted = labels != IGNORED_LABEL
        # A row that is not counted still gathers something: id 0.
        weights = ops.cast(counted, ms.float32) * weight
        loss = self.cross_entropy(self.model.logits(x), labels * counted, weights)
        return loss[0] if self.split else loss

    def recompute_layers(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for layer in self.layers:
            layer.recompute()
        self.attention.recompute()

    def _by_head(self, x: Tensor, batch: int, heads: int) -> Tensor:
        x = x.reshape((batch, self.seq_length, heads, self.channels))
        return self.transpose(x, (0, 2, 1, 3))
