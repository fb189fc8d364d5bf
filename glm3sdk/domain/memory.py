"""What a training step takes of one card's memory, in bytes, from shapes alone.

With N = batch_size x seq_length tokens on a card, e bytes of the compute dtype, and the
model's sizes h (hidden), f (ffn), a (heads), c (a x kv_channels), q (query, key and value
rows), V (vocabulary), L (layers), t cards that share a layer:

    weights      P e                      P: parameters of the card
    gradients    4 T                      T: trained parameters of the card, summed in float32
    optimizer    8 T, or 12 T             two moments; a float32 copy where e < 4
    one layer A  N [4h e + 8              two residuals and two norms' outputs; two root means
                    + (q + c)/t e         query, key, value; the output layer's input
                    + a/t seq_length e    explicit attention: the softmax
                      or c/t e + 64 a/t   flash attention: its output, and maximum and sum of
                                          each row, float32, eight times each
                    + 3 f/t e]            gate, up, and their product
    activations  L A + A                  and once more A: the gradients of one layer's
    recomputed   L K + 2 A                K = N [2h + (q + c)/t] e: what crosses between cells
    final norm   N (2h e + 4)
    logits       12 N V/t                 log-probabilities, their gradient and the logits',
                 + N V/t e where e < 4    float32; the logits as they leave the last layer

Where SwiGLU and RMSNorm are not one kernel, their parts are kept too: 2 f/t e and 2h e more.
An adapted layer keeps its dropped input and the drop's mask, and r values of A's output;
adapters are float32. What frozen layers need not keep is counted all the same, so a LoRA
run takes rather less. The counting is that of Korthikanti et al. 2022, section 4 (arXiv
2205.05198), for these cells: without dropout, gated, with grouped queries. Communication
buffers, the framework's own memory and fragmentation are not counted.
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
