from __future__ import annotations

import math

import attrs
import numpy as np
import pytest

from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.sharding import shape_of
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, MASTER, Share, Sums, TensorShares

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=24,
    ffn_hidden_size=16,
    num_attention_heads=8,
    kv_channels=4,
    multi_query_group_num=2,
    padded_vocab_size=48,
)
LAYER = "transformer.encoder.layers.0."
QKV = f"{LAYER}self_attention.query_key_value.weight"
DENSE = f"{LAYER}self_attention.dense.weight"
GATE_UP = f"{LAYER}mlp.dense_h_to_4h.weight"
NORM = f"{LAYER}input_layernorm.weight"
EMBEDDING = "transformer.embedding.word_embeddings.weight"
PLANS = [
    ParallelPlan(data=data, tensor=tensor, optimizer_shard=sharded)
    for data in (1, 2, 6)
    for tensor in (1, 2, 4, 8)
    for sharded in (False, True)
]
IDS = [f"data{p.data}_tensor{p.tensor}{'_sharded' * p.optimizer_shard}" for p in PLANS]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=IDS)
LORA = Lora(rank=4, targets=LINEAR_LAYERS)


def every_name(shares: TensorShares) -> list[str]:
    trained = shares.trained()
    prefixed = [f"{prefix}{name}" for prefix in (FIRST_MOMENT, MASTER) for name in trained]
    return [*trained, *prefixed, "beta1_power"]


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape)


def held(share: Share, whole: np.ndarray) -> np.ndarray:
    if not share.full_shape:
        return whole
    return np.concatenate([whole[region] for region in share.regions])


def test_a_rank_computes_with_whole_heads_and_groups() -> None:
    plan = ParallelPlan(tensor=2)
    share = TensorShares(config=CONFIG, plan=plan).share(QKV, plan.place(1))
    # 8 query heads, 2 key groups and 2 value groups of 4 rows: heads 4 to 7, and group 1.
    assert share.rows == ((16, 32), (36, 40), (44, 48))
    assert share.shape == (24, 24)


def test_ranks_that_outnumber_the_groups_compute_with_the_same_group() -> None:
    plan = ParallelPlan(tensor=4)
    shares = TensorShares(config=CONFIG, plan=plan)
    rows = [shares.share(QKV, plan.place(rank)).rows for rank in range(4)]
    assert rows[0] == ((0, 8), (32, 36), (40, 44))
    assert rows[1] == ((8, 16), (32, 36), (40, 44))
    assert rows[2] == ((16, 24), (36, 40), (44, 48))
    # Rows from the keys on are the same on two ranks: each has a part of their gradient.
    assert shares.sums(QKV, plan.place(2)) == Sums((8, 16), (2, 3))
    bias = QKV.replace("weight", "bias")
    assert shares.sums(bias, plan.place(3)) == Sums((8, 16), (2, 3))


def test_a_rank_computes_with_the_same_columns_of_the_gate_and_of_its_multiplier() -> None:
    plan = ParallelPlan(tensor=4)
    share = TensorShares(config=CONFIG, plan=plan).share(GATE_UP, plan.place(1))
    assert share.rows == ((4, 8), (20, 24))


def test_only_what_every_rank_needs_is_whole_on_every_rank() -> None:
    plan = ParallelPlan(tensor=8)
    shares = TensorShares(config=CONFIG, plan=plan, lora=LORA)
    whole = {name for name in shares.trained() if shares.share(name, plan.place(3)).is_whole}
    assert whole == {n for n in shares.trained() if shares.is_replicated(n)}
    layers = {name.split(".")[-3]: name.split(".")[-2] for name in sorted(whole)}
    assert layers == {
        "query_key_value": "lora_A",
        "dense_h_to_4h": "lora_A",
        "dense": "lora_B",
        "dense_4h_to_h": "lora_B",
    }
    assert {n for n in CONFIG.tensor_shapes() if shares.is_replicated(n)} == {
        n for n in CONFIG.tensor_shapes() if "layernorm" in n
    }


@every_plan
def test_a_rank_holds_what_the_model_that_it_computes_has(plan: ParallelPlan) -> None:
    shares = TensorShares(config=CONFIG, plan=plan)
    for rank in (0, plan.ranks - 1):
        place = plan.place(rank)
        for name, shape in place.local_config(CONFIG).tensor_shapes().items():
            assert shares.share(name, place).shape == shape, name


@every_plan
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_ranks_that_exchange_rows_get_the_whole_tensor(
    plan: ParallelPlan, lora: Lora | None
) -> None:
    shares = TensorShares(config=CONFIG, plan=plan, lora=lora)
    for name in every_name(shares):
        if not shares.exchanged(name):
            continue
        whole = numbered(shares.full_shape(name))
        for ranks in {shares.exchange_ranks(name, plan.place(rank)) for rank in range(plan.ranks)}:
            total = np.zeros_like(whole)
            for rank in ranks:
                place = plan.place(rank)
                part = held(shares.share(name, place), whole)
                for (start, stop), (first, last) in shares.contributes(name, place):
                    total[first:last] += part[start:stop]
            np.testing.assert_array_equal(total, whole, err_msg=name)


@every_plan
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_what_is_stored_makes_up_the_tensor_and_is_what_is_held_where_no_rows_are_exchanged(
    plan: ParallelPlan, lora: Lora | None
) -> None:
    shares = TensorShares(config=CONFIG, plan=plan, lora=lora)
    for name in every_name(shares):
        shape = shares.full_shape(name)
        written = np.zeros(shape)
        for rank in range(plan.ranks):
            place = plan.place(rank)
            region = shares.stored(name, place)
            if not shares.exchanged(name):
                assert shares.share(name, place).regions == (region,), name
            if shares.writes(name, place):
                written[region] += 1
        assert (written == 1).all(), name


@every_plan
def test_optimizer_state_is_shared_out_as_evenly_as_its_rows_allow(plan: ParallelPlan) -> None:
    shares = TensorShares(config=CONFIG, plan=plan)
    for name in shares.trained():
        weight = shares.share(name, plan.place(0)).shape
        moment = shares.share(FIRST_MOMENT + name, plan.place(0)).shape
        shards = shares.shards(FIRST_MOMENT + name)
        assert shards == 1 or plan.optimizer_shard
        assert weight[0] == moment[0] * shards
        if plan.optimizer_shard and not (plan.tensor > 1 and shares.is_replicated(name)):
            assert shards == math.gcd(weight[0], plan.data)
        # The ranks that gather the weight hold all its shards, in order.
        for rank in range(plan.ranks):
            ranks = plan.place(rank).shard_ranks(shards)
            parts = [shares.share(FIRST_MOMENT + name, plan.place(r)).rows for r in ranks]
            rows = [row for part in parts for start, stop in part for row in range(start, stop)]
            expected = shares.share(name, plan.place(rank)).rows
            assert rows == [row for start, stop in expected for row in range(start, stop)]


def test_with_one_data_rank_sharding_the_optimizer_changes_no_share() -> None:
    for tensor in (1, 2, 8):
        plan = ParallelPlan(tensor=tensor)
        sharded = attrs.evolve(plan, optimizer_shard=True)
        plain = TensorShares(config=CONFIG, plan=plan)
        other = TensorShares(config=CONFIG, plan=sharded)
        for name in every_name(plain):
            for rank in range(tensor):
                assert plain.share(name, plan.place(rank)) == other.share(name, sharded.place(rank))
            assert plain.layout(name) == other.layout(name)


def test_adapter_matrices_that_every_rank_has_get_a_part_of_their_gradient_on_each() -> None:
    plan = ParallelPlan(data=2, tensor=4)
    shares = TensorShares(config=CONFIG, plan=plan, lora=LORA)
    place = plan.place(5)
    for pair in LORA.pairs(CONFIG):
        by_rows = "query_key_value" in pair.weight or "dense_h_to_4h" in pair.weight
        whole, split = (pair.name_a, pair.name_b) if by_rows else (pair.name_b, pair.name_a)
        length = shares.full_shape(whole)[0]
        assert shares.sums(whole, place) == Sums((0, length), (4, 5, 6, 7))
        copied = "query_key_value" in split
        assert shares.sums(split, place) == (Sums((8, 16), (4, 5)) if copied else None)
    assert TensorShares(config=CONFIG, plan=plan).sums(NORM, place) is None
    assert (
        TensorShares(config=CONFIG, plan=ParallelPlan(data=2), lora=LORA).sums(
            LORA.pairs(CONFIG)[0].name_a, ParallelPlan(data=2).place(1)
        )
        is None
    )


def test_a_strategy_file_says_where_each_rank_finds_what_it_stores() -> None:
    plan = ParallelPlan(data=2, tensor=2, optimizer_shard=True)
    shares = TensorShares(config=CONFIG, plan=plan)
    strategy = shares.strategy([QKV, DENSE, NORM, EMBEDDING, FIRST_MOMENT + DENSE])
    assert strategy.world_size == 4
    assert strategy.layouts(QKV)[0].tensor_map == ((0,), ())
    assert strategy.layouts(DENSE)[0].tensor_map == ((), (0,))
    moment = strategy.layouts(FIRST_MOMENT + DENSE)[0]
    assert (moment.opt_weight_shard_size, moment.opt_weight_shard_step) == (2, 2)
    for rank in range(4):
        region = strategy.region(FIRST_MOMENT + DENSE, (24, 32), rank)
        assert region == shares.stored(FIRST_MOMENT + DENSE, plan.place(rank))
        assert shape_of(region) == (12, 16)
