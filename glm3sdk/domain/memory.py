"""What a training step takes of one card's memory, in bytes, from shapes alone.

N = batch_size x seq_length tokens lie on a card, e bytes to an item of its dtype. h is the
model's hidden width and L its layers; f, a, q, c and V are what the card computes of the ffn, the
heads, the rows of query, key and value, of heads x kv_channels and of the vocabulary.

    weights      P e                P parameters on the card
    gradients    4 T                T trained ones, summed in float32
                 + 4 S              where ReduceScatter gives the card its shards' sums
    optimizer    8 S                two moments; S is T, or the card's optimizer shards of it
                 + 4 S              float32 copies, where e < 4 and of every shard
    layer A      N x (4h e          inputs and outputs of two norms
                      + 8           root means of the norms
                      + q e         query, key and value
                      + c e         input of the layer that follows attention
                      + a s e       explicit attention: the softmax over s = seq_length
                      or c e        flash attention: its output,
                      + 64 a        and each row's maximum and sum, float32, eight times
                      + 3 f e)      gate, up, and their product
    activations  L A + A            and A again: the gradients of one layer's
    recomputed   L K + 2 A          K = N (2h + q + c) e: what crosses between cells
    final norm   N (2h e + 4)       its input, its output, its root means
    logits       12 N V             log-probabilities, their gradient, the logits' gradient
                 + N V e            the logits as the last layer gives them, where e < 4

P, T and S are counted by `tensor_shares`. Where SwiGLU and RMSNorm are not one kernel, their
inner steps are kept too: 2h e + 2 f e a token. An adapter is float32; its layer keeps the dropped
input, the drop's mask, and r values. What a frozen layer need not keep is counted all the same,
so a LoRA run takes less.

A layer is counted as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4), for these
cells: no dropout, a gated feed-forward layer, grouped queries. Communication buffers, the
framework's own memory and fragmentation are not counted, and a device is taken to reuse what
is no longer needed. The figures have not been measured on an Ascend card.
"""

from __future__ import annotations

import math

import attrs

from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, TensorShares

GIB = 2**30
"""Bytes of what cards and `max_device_memory` call a GB."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT32 = 4
# FlashAttentionScore repeats a row's maximum and sum so often, for alignment.
_ROW_STATISTICS = 2 * 8


@attrs.frozen(kw_only=True)
class CardLoad:
    """What one card is given to train.

    Attributes:
        batch_size: sequences of a micro-batch.
        seq_length: tokens of each.
        dtype: what weights and activations are held in.
        lora: the adapter that is trained, or None for every weight.
        flash_attention: one kernel does attention and keeps no scores.
        fused: SwiGLU and RMSNorm are one kernel each.
        reduce_scatter: a card is given its optimizer shards' sums alone.
        data: data-parallel replicas.
        tensor: cards that share a replica's layers; checked by `ParallelPlan.check`.
        optimizer_shard: each replica keeps a share of the optimizer's state.
    """

    batch_size: int
    seq_length: int
    dtype: str
    lora: Lora | None = None
    flash_attention: bool = False
    fused: bool = False
    reduce_scatter: bool = False
    data: int = 1
    tensor: int = 1
    optimizer_shard: bool = False

    @property
    def plan(self) -> ParallelPlan:
        """How all cards share the run."""
        return ParallelPlan(
            data=self.data, tensor=self.tensor, optimizer_shard=self.optimizer_shard
        )

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.batch_size * self.seq_length

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return _BYTES[self.dtype]


@attrs.frozen(kw_only=True)
class MemoryUse:
    """Bytes of one card; see the module's formulas.

    Attributes:
        weights: frozen and trained.
        gradients: of what is trained.
        optimizer: moments and float32 copies.
        activations: kept for the backward pass.
        recomputed_activations: the same where layers are recomputed.
        logits: buffers as wide as the vocabulary.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    recomputed_activations: int
    logits: int

    def total(self, *, recompute: bool) -> int:
        """All of it at once, which is the most there can be."""
        activations = self.recomputed_activations if recompute else self.activations
        return self.weights + self.gradients + self.optimizer + activations + self.logits


def training_memory(config: Glm3Config, load: CardLoad) -> MemoryUse:
    """The memory of one card in a training step; every card's is the same."""
    shares = TensorShares(config=config, plan=load.plan, lora=load.lora)
    local = load.plan.place(0).local_config(config)
    item, tokens = load.item_bytes, load.tokens
    weights = item * sum(_size(shares, name) for name in config.tensor_shapes())
    gradients = optimizer = 0
    for name in shares.trained():
        size, shards = _size(shares, name), shares.shards(FIRST_MOMENT + name)
        copied = shards > 1 or (load.lora is None and item < _FLOAT32)
        gradients += _FLOAT32 * size
        optimizer += (3 if copied else 2) * _FLOAT32 * size // shards
        if load.lora:
            weights += _FLOAT32 * size
        if load.reduce_scatter and 1 < shards == load.data:
            gradients += _FLOAT32 * size // shards
    layer = _layer(local, load)
    final_norm = tokens * (2 * config.hidden_size * item + _FLOAT32)
    logits = 3 * _FLOAT32 + (item if item < _FLOAT32 else 0)
    return MemoryUse(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=(config.num_layers + 1) * layer + final_norm,
        recomputed_activations=config.num_layers * _crossing(local, load) + 2 * layer + final_norm,
        logits=tokens * local.padded_vocab_size * logits,
    )


def trained_parameters(config: Glm3Config, lora: Lora | None) -> int:
    """Parameters that a run trains, over all cards of a replica."""
    shares = TensorShares(config=config, plan=ParallelPlan(), lora=lora)
    return sum(_size(shares, name) for name in shares.trained())


def _size(shares: TensorShares, name: str) -> int:
    """What a card computes with of a tensor; of optimizer state, keeps."""
    return math.prod(shares.share(name, shares.plan.place(0)).shape)


def _layer(local: Glm3Config, load: CardLoad) -> int:
    """Bytes that one layer keeps for its backward pass."""
    hidden, item = local.hidden_size, load.item_bytes
    heads, ffn = local.num_attention_heads, local.ffn_hidden_size
    context = heads * local.kv_channels
    items = 4 * hidden + local.qkv_size + context + 3 * ffn
    statistics = 2 * _FLOAT32
    if load.flash_attention:
        items += context
        statistics += heads * _ROW_STATISTICS * _FLOAT32
    else:
        items += heads * load.seq_length
    if not load.fused:
        items += 2 * ffn + 2 * hidden
    if load.lora:
        items += _adapter_items(local, load.lora)
    return load.tokens * (items * item + statistics)


def _adapter_items(local: Glm3Config, lora: Lora) -> int:
    widths = {
        "query_key_value": local.hidden_size,
        "dense": local.num_attention_heads * local.kv_channels,
        "dense_h_to_4h": local.hidden_size,
        "dense_4h_to_h": local.ffn_hidden_size,
    }
    kept = 2 if lora.dropout else 0
    return sum(kept * widths[target] + lora.rank for target in lora.targets)


def _crossing(local: Glm3Config, load: CardLoad) -> int:
    """Bytes of a layer that are not recomputed."""
    context = local.num_attention_heads * local.kv_channels
    return load.tokens * (2 * local.hidden_size + local.qkv_size + context) * load.item_bytes
