from __future__ import annotations

import math

from glm3sdk.domain.card_parts import card_parts
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.tensor_shares import TensorShares

SIX_B = Glm3Config.preset("glm3-6b")
LAYER = "transformer.encoder.layers.*."


def test_every_tensor_is_told_once_for_all_layers() -> None:
    parts = card_parts(TensorShares(config=SIX_B, plan=ParallelPlan()))
    assert len(parts) == 10
    assert sum(part.tensors for part in parts) == len(SIX_B.tensor_shapes()) == 199
    assert sum(part.tensors * math.prod(part.card) for part in parts) == SIX_B.parameter_count
    assert all(part.shape == part.card == part.state for part in parts)


def test_a_card_computes_with_whole_heads_and_keeps_a_shard_of_the_moments() -> None:
    plan = ParallelPlan(data=4, tensor=8, optimizer_shard=True)
    parts = {part.name: part for part in card_parts(TensorShares(config=SIX_B, plan=plan))}
    qkv = parts[LAYER + "self_attention.query_key_value.weight"]
    # 4 of 32 query heads, and one of 2 key and of 2 value heads, of 128 rows each.
    assert (qkv.shape, qkv.card, qkv.state) == ((4608, 4096), (768, 4096), (192, 4096))
    gate = parts[LAYER + "mlp.dense_h_to_4h.weight"]
    assert (gate.card, gate.state) == ((2 * 13696 // 8, 4096), (2 * 13696 // 32, 4096))


def test_an_adapter_is_told_beside_the_frozen_weights() -> None:
    plan = ParallelPlan(data=2, tensor=2)
    parts = card_parts(TensorShares(config=SIX_B, plan=plan, lora=Lora(rank=8)))
    frozen, trained = parts[:10], parts[10:]
    assert [part.state for part in frozen] == [None] * 10
    assert [(part.tensors, part.card, part.state) for part in trained] == [
        (28, (8, 4096), (8, 4096)),
        (28, (2304, 8), (2304, 8)),
    ]
