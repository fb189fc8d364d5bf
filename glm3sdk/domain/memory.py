"""What a training step takes of one card's memory, in bytes, from shapes alone.

N = batch_size x seq_length tokens lie on a card, e bytes to an item of its dtype. h, f, a
and V are the model's hidden and ffn width, heads and vocabulary, c is a x kv_channels, q the
rows of query, key and value, L the layers, and t the cards that share each layer.

    weights      P e                P parameters on the card
    gradients    4 T                T trained ones, summed in float32
    optimizer    8 T                two moments
                 + 4 T              float32 copies, where e < 4
    layer A      N x (4h e          inputs and outputs of two norms
                      + 8           root means of the norms
                      + q/t e       query, key and value
                      + c/t e       input of the layer that follows attention
                      + a/t s e     explicit attention: the softmax over s = seq_length
                      or c/t e      flash attention: its output,
                      + 64 a/t      and each row's maximum and sum, float32, eight times
                      + 3 f/t e)    gate, up, and their product
    activations  L A + A            and A again: the gradients of one layer's
    recomputed   L K + 2 A          K = N (2h + (q + c)/t) e: what crosses between cells
    final norm   N (2h e + 4)       its input, its output, its root means
    logits       12 N V/t           log-probabilities, their gradient, the logits' gradient
                 + N V/t e          the logits as the last layer gives them, where e < 4

Where SwiGLU and RMSNorm are not one kernel, their inner steps are kept too: 2h e + 2 f/t e
a token. An adapter is float32; its layer keeps the dropped input, the drop's mask, and r
values. What a frozen layer need not keep is counted all the same, so a LoRA run takes less.

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

GIB = 2**30
"""Bytes of what cards and `max_device_memory` call a GB."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT32 = 4
# FlashAttentionScore repeats a row's maximum and sum so often, for alignment.
_ROW_STATISTICS = 2 * 8

# Split by rows (Megatron's column-parallel); the other linear layers are split by columns.
_SPLIT_BY_ROWS = ("query_key_value", "dense_h_to_4h")


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
        data: data-parallel replicas.
        tensor: cards that share a replica's layers; must divide what `tensor_faults` checks.
        optimizer_shard: each replica keeps 1/data of the optimizer's state.
    """

    batch_size: int
    seq_length: int
    dtype: str
    lora: Lora | None = None
    flash_attention: bool = False
    fused: bool = False
    data: int = 1
    tensor: int = 1
    optimizer_shard: bool = False

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
    """The memory of one card in a training step."""
    own = _parameters(config, load.tensor)
    item, tokens = load.item_bytes, load.tokens
    if load.lora:
        trained = _adapter_parameters(config, load.lora, load.tensor)
        weights = own * item + trained * _FLOAT32
        state = 2 * _FLOAT32 * trained
    else:
        trained, weights = own, own * item
        state = (2 if item == _FLOAT32 else 3) * _FLOAT32 * trained
    layer = _layer(config, load)
    final_norm = tokens * (2 * config.hidden_size * item + _FLOAT32)
    logits = tokens * _share(config.padded_vocab_size, load)
    return MemoryUse(
        weights=weights,
        gradients=_FLOAT32 * trained,
        optimizer=math.ceil(state / load.data) if load.optimizer_shard else state,
        activations=(config.num_layers + 1) * layer + final_norm,
        recomputed_activations=config.num_layers * _crossing(config, load) + 2 * layer + final_norm,
        logits=logits * (3 * _FLOAT32 + (item if item < _FLOAT32 else 0)),
    )


def trained_parameters(config: Glm3Config, lora: Lora | None) -> int:
    """Parameters that a run trains, over all cards of a replica."""
    return _adapter_parameters(config, lora, 1) if lora else config.parameter_count


def tensor_faults(config: Glm3Config, tensor: int) -> tuple[str, ...]:
    """What `tensor` cards cannot share evenly, such as "multi_query_group_num=2"."""
    names = (
        "num_attention_heads",
        "multi_query_group_num",
        "ffn_hidden_size",
        "padded_vocab_size",
    )
    return tuple(
        f"{name}={getattr(config, name)}" for name in names if getattr(config, name) % tensor
    )


def _layer(config: Glm3Config, load: CardLoad) -> int:
    """Bytes that one layer keeps for its backward pass."""
    hidden, item = config.hidden_size, load.item_bytes
    heads = _share(config.num_attention_heads, load)
    context = heads * config.kv_channels
    ffn = _share(config.ffn_hidden_size, load)
    items = 4 * hidden + _share(config.qkv_size, load) + context + 3 * ffn
    statistics = 2 * _FLOAT32
    if load.flash_attention:
        items += context
        statistics += heads * _ROW_STATISTICS * _FLOAT32
    else:
        items += heads * load.seq_length
    if not load.fused:
        items += 2 * ffn + 2 * hidden
    if load.lora:
        items += _adapter_items(config, load, load.lora)
    return load.tokens * (items * item + statistics)


def _adapter_items(config: Glm3Config, load: CardLoad, lora: Lora) -> int:
    context = config.num_attention_heads * config.kv_channels
    widths = {
        "query_key_value": config.hidden_size,
        "dense": _share(context, load),
        "dense_h_to_4h": config.hidden_size,
        "dense_4h_to_h": _share(config.ffn_hidden_size, load),
    }
    kept = 2 if lora.dropout else 0
    return sum(kept * widths[target] + lora.rank for target in lora.targets)


def _crossing(config: Glm3Config, load: CardLoad) -> int:
    """Bytes of a layer that are not recomputed."""
    context = config.num_attention_heads * config.kv_channels
    items = 2 * config.hidden_size + _share(config.qkv_size + context, load)
    return load.tokens * items * load.item_bytes


def _parameters(config: Glm3Config, tensor: int) -> int:
    """Parameters of a card: norms are on each, the rest is shared."""
    return sum(
        math.prod(shape) // (1 if "layernorm" in name else tensor)
        for name, shape in config.tensor_shapes().items()
    )


def _adapter_parameters(config: Glm3Config, lora: Lora, tensor: int) -> int:
    total = 0
    for pair in lora.pairs(config):
        a, b = math.prod(pair.shape_a), math.prod(pair.shape_b)
        by_rows = pair.weight.removesuffix(".weight").endswith(_SPLIT_BY_ROWS)
        total += a + b // tensor if by_rows else a // tensor + b
    return total


def _share(size: int, load: CardLoad) -> int:
    return size // load.tensor
