from __future__ import annotations

import attrs
import pytest

from glm3sdk.domain.lora import Lora
from glm3sdk.domain.memory import (
    GIB,
    CardLoad,
    trained_parameters,
    training_memory,
)
from glm3sdk.domain.model import Glm3Config

PUBLISHED = 6_243_584_000
MODEL = Glm3Config.preset("glm3-6b")
LOAD = CardLoad(batch_size=1, seq_length=512, dtype="bfloat16", fused=True)


def layer_bytes(config: Glm3Config, load: CardLoad, field: str = "activations") -> int:
    """What one more layer adds."""
    more = attrs.evolve(config, num_layers=config.num_layers + 1)
    return getattr(training_memory(more, load), field) - getattr(
        training_memory(config, load), field
    )


def test_full_training_in_bfloat16_takes_18_bytes_a_parameter():
    # 2 weights, 4 gradients, 4 copies in float32, 8 moments
    memory = training_memory(MODEL, LOAD)
    assert memory.weights + memory.gradients + memory.optimizer == 18 * PUBLISHED
    assert memory.total(recompute=True) > 64 * GIB


def test_float32_weights_are_their_own_copies():
    memory = training_memory(MODEL, attrs.evolve(LOAD, dtype="float32"))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * PUBLISHED


def test_lora_counts_only_adapters_beside_the_weights_and_fits_one_card():
    # PEFT prints 1,949,696 trainable parameters for ChatGLM3-6B with r=8 on query_key_value.
    assert trained_parameters(MODEL, Lora()) == 1_949_696
    memory = training_memory(MODEL, attrs.evolve(LOAD, lora=Lora()))
    assert memory.weights == 2 * PUBLISHED + 4 * 1_949_696
    assert (memory.gradients, memory.optimizer) == (4 * 1_949_696, 8 * 1_949_696)
    assert memory.total(recompute=False) < 32 * GIB


@pytest.mark.parametrize(("batch", "length"), [(1, 64), (3, 128)])
def test_a_layer_is_what_korthikanti_counted(batch: int, length: int):
    # Their layer keeps sbh (34 + 5 as/h) bytes in half precision. Without dropout that is
    # sbh (32 + 2 as/h): two masks of a byte in the first term, a mask and a copy in the
    # second. Their feed-forward keeps 2 x 4h items beside its input, ours 3f; f = 8h/3.
    hidden, heads = 96, 3
    config = Glm3Config(
        num_layers=1,
        hidden_size=hidden,
        ffn_hidden_size=8 * hidden // 3,
        num_attention_heads=heads,
        multi_query_group_num=heads,
        kv_channels=hidden // heads,
        padded_vocab_size=64,
    )
    load = attrs.evolve(LOAD, batch_size=batch, seq_length=length)
    counted = batch * length * hidden * 32 + 2 * heads * length**2 * batch
    root_means = 8 * batch * length
    assert layer_bytes(config, load) == counted + root_means


def test_flash_attention_keeps_no_scores():
    flash, explicit = attrs.evolve(LOAD, flash_attention=True), LOAD
    longer = {"seq_length": 2 * LOAD.seq_length}
    assert layer_bytes(MODEL, attrs.evolve(flash, **longer)) == 2 * layer_bytes(MODEL, flash)
    grown = layer_bytes(MODEL, attrs.evolve(explicit, **longer)) - 2 * layer_bytes(MODEL, explicit)
    assert grown == 2 * MODEL.num_attention_heads * 2 * LOAD.seq_length**2


def test_kernels_of_their_own_keep_more_than_fused_ones():
    assert layer_bytes(MODEL, attrs.evolve(LOAD, fused=False)) > layer_bytes(MODEL, LOAD)


@pytest.mark.parametrize("flash", [False, True])
def test_recomputing_keeps_little_of_a_layer(flash: bool):
    load = attrs.evolve(LOAD, seq_length=2048, flash_attention=flash)
    kept = layer_bytes(MODEL, load)
    assert layer_bytes(MODEL, load, "recomputed_activations") < kept / 3


def test_tensor_parallel_cards_share_all_but_norms():
    norms = (2 * MODEL.num_layers + 1) * MODEL.hidden_size
    memory = training_memory(MODEL, attrs.evolve(LOAD, tensor=2))
    assert memory.weights == 2 * ((PUBLISHED - norms) // 2 + norms)
    whole = training_memory(MODEL, LOAD)
    assert memory.logits == whole.logits // 2
    assert whole.activations / 2 < memory.activations < whole.activations


def test_tensor_parallel_adapters_share_the_matrix_that_is_cut():
    lora = Lora(targets=("query_key_value", "dense"))
    whole, half = (
        training_memory(MODEL, attrs.evolve(LOAD, lora=lora, tensor=tensor)).gradients
        for tensor in (1, 2)
    )
    rows = 8 * MODEL.qkv_size
    columns = 8 * MODEL.num_attention_heads * MODEL.kv_channels
    assert whole - half == 4 * MODEL.num_layers * (rows + columns) // 2


def test_an_optimizer_shard_divides_the_optimizer_and_nothing_else():
    whole = training_memory(MODEL, attrs.evolve(LOAD, data=8))
    shard = training_memory(MODEL, attrs.evolve(LOAD, data=8, optimizer_shard=True))
    # Every first dimension of the 6B model is a multiple of 8.
    assert shard == attrs.evolve(whole, optimizer=whole.optimizer // 8)
    assert whole == training_memory(MODEL, LOAD)


def test_shards_that_a_card_is_given_alone_take_memory_of_their_own():
    load = attrs.evolve(LOAD, data=8, optimizer_shard=True)
    scattered = training_memory(MODEL, attrs.evolve(load, reduce_scatter=True))
    assert scattered.gradients == 4 * PUBLISHED + 4 * PUBLISHED // 8
    # Over 3 ranks no tensor can be split: 4096 and 65,024 are no multiples of 3, as 4,608 is.
    three = training_memory(MODEL, attrs.evolve(load, data=3))
    qkv = MODEL.num_layers * MODEL.qkv_size * (MODEL.hidden_size + 1)
    assert three.optimizer == 12 * (PUBLISHED - qkv) + 12 * qkv // 3


def test_shards_of_float32_weights_are_copies_too():
    load = attrs.evolve(LOAD, dtype="float32", data=8)
    shard = training_memory(MODEL, attrs.evolve(load, optimizer_shard=True))
    assert training_memory(MODEL, load).optimizer == 8 * PUBLISHED
    assert shard.optimizer == 12 * PUBLISHED // 8


def test_ranks_that_outnumber_the_groups_each_hold_one():
    norms = (2 * MODEL.num_layers + 1) * MODEL.hidden_size
    qkv = MODEL.num_layers * (MODEL.hidden_size + 1)
    rest = PUBLISHED - norms - qkv * MODEL.qkv_size
    # 32 / 8 query heads, one of 2 key heads and one of 2 value heads, of 128 rows each.
    expected = rest // 8 + norms + qkv * (4 + 1 + 1) * 128
    assert training_memory(MODEL, attrs.evolve(LOAD, tensor=8)).weights == 2 * expected


def test_logits_are_as_wide_as_the_vocabulary():
    assert training_memory(MODEL, LOAD).logits == 512 * 65024 * (3 * 4 + 2)
