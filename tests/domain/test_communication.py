from __future__ import annotations

import pytest

from glm3sdk.domain.communication import (
    ALL_GATHER,
    ALL_REDUCE,
    REDUCE_SCATTER,
    Collective,
    Collectives,
    StepLoad,
    sent_bytes,
    step_collectives,
)
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.domain.tensor_shares import TensorShares

SIX_B = Glm3Config.preset("glm3-6b")
LOAD = StepLoad(batch_size=1, seq_length=2048, micro_batches=4)
PARAMETERS = 6_243_584_000


def sent(plan: ParallelPlan, load: StepLoad = LOAD, lora: Lora | None = None) -> int:
    return sent_bytes(step_collectives(TensorShares(config=SIX_B, plan=plan, lora=lora), load))


def test_a_ring_moves_what_is_published() -> None:
    # Patarasuk and Yuan 2009: 2 (p - 1) / p of the data, half of it for each of its two phases.
    assert Collective(ALL_REDUCE, 4, 400).sent == 600
    assert Collective(REDUCE_SCATTER, 4, 400).sent == 300
    assert Collective(ALL_GATHER, 4, 100).sent == 300


def test_data_ranks_send_each_gradient_once_a_step_however_many_micro_batches() -> None:
    labels_and_losses = (8 - 1) * (4 + 8)
    expected = 2 * 7 * 4 * PARAMETERS // 8 + labels_and_losses
    assert sent(ParallelPlan(data=8)) == expected
    one = StepLoad(batch_size=1, seq_length=2048)
    assert sent(ParallelPlan(data=8), one) == expected


def test_sharded_state_sends_float32_gradients_and_half_precision_weights() -> None:
    plan = ParallelPlan(data=8, optimizer_shard=True)
    # Every first dimension of the 6B model is a multiple of 8.
    expected = 7 * (4 + 2) * PARAMETERS // 8 + (8 - 1) * (4 + 8)
    assert sent(plan) == expected


def test_tensor_ranks_send_activations_with_every_micro_batch() -> None:
    activation = 2048 * 4096 * 2
    a_micro_batch = (2 + 4 * 28) * 2 * 7 * activation // 8 + 7 * 12 * 2048
    # Beside that: 4 ranks hold each key and value group, 2 x 128 rows and their biases.
    groups = 28 * 2 * 3 * 4 * 256 * (4096 + 1) // 4
    expected = 4 * a_micro_batch + groups + 7 * 12
    assert sent(ParallelPlan(tensor=8)) == expected
    recomputed = StepLoad(batch_size=1, seq_length=2048, micro_batches=4, recompute=True)
    more = 4 * 56 * 2 * 7 * activation // 8
    assert sent(ParallelPlan(tensor=8), recomputed) == expected + more


def test_an_adapter_sends_little() -> None:
    lora = Lora(rank=8)
    parameters = 28 * 8 * (4096 + 4608)
    assert sent(ParallelPlan(data=8), lora=lora) == 7 * 4 * parameters // 4 + 7 * 12


def test_a_cpu_gathers_in_groups_by_twice_the_bytes() -> None:
    plan = ParallelPlan(data=2, tensor=2, optimizer_shard=True)
    cpu = Collectives(gathers_in_groups=False, reduce_scatter=False)
    load = StepLoad(batch_size=1, seq_length=64, item_bytes=4, collectives=cpu)
    found = step_collectives(TensorShares(config=SIX_B, plan=plan), load)
    assert {c.ranks for c in found if c.kind == ALL_GATHER} == {4}
    assert not any(c.kind == REDUCE_SCATTER for c in found)


def test_a_rank_alone_sends_nothing() -> None:
    assert sent(ParallelPlan()) == 0


@pytest.mark.parametrize(
    ("collective", "servers", "between"),
    [
        # 32 neighbours on 4 servers of 8: an eighth of the sum is exchanged among 4 servers.
        (Collective(ALL_REDUCE, 32, 3200), 4, 2 * 3 * 3200 // 32),
        (Collective(REDUCE_SCATTER, 32, 3200), 4, 3 * 3200 // 32),
        # Each card's part has to reach 3 other servers once; from there cards pass it on.
        (Collective(ALL_GATHER, 32, 100), 4, 3 * 100),
        # Tensor ranks on one server; data ranks beside them, every second and every eighth.
        (Collective(ALL_REDUCE, 8, 800), 1, 0),
        (Collective(ALL_REDUCE, 16, 1600, 2), 4, 2 * 3 * 1600 // 16),
        (Collective(ALL_REDUCE, 4, 400, 8), 4, 2 * 3 * 400 // 4),
        (Collective(ALL_GATHER, 4, 100, 16), 4, 3 * 100),
        # Servers have 3 or 2 of these ranks: then each card may have to send on its own.
        (Collective(ALL_REDUCE, 8, 800, 3), 8, 2 * 7 * 800 // 8),
    ],
)
def test_what_leaves_a_server_depends_on_who_is_on_it(
    collective: Collective, servers: int, between: int
) -> None:
    assert collective.servers(8) == servers
    assert collective.between_servers(8) == between <= collective.sent


def test_a_hierarchical_exchange_sends_as_much_as_one_ring() -> None:
    for kind in (ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER):
        flat = Collective(kind, 32, 3200)
        between = flat.between_servers(8)
        # Within a server 8 cards exchange it all, or what the others of 4 servers brought.
        within = Collective(kind, 8, 3200).sent * (4 if kind == ALL_GATHER else 1)
        assert within + between == flat.sent


def test_tensor_ranks_of_one_server_send_nothing_to_another() -> None:
    plan = ParallelPlan(data=4, tensor=8, optimizer_shard=True)
    found = step_collectives(TensorShares(config=SIX_B, plan=plan), LOAD)
    neighbours = [each for each in found if each.ranks == 8]
    assert neighbours
    assert not any(each.between_servers(8) for each in neighbours)
    # A card's eighth of the gradients goes to 3 other servers, and weights come from there.
    distant = [each for each in found if each.stride == 8]
    assert all(each.between_servers(8) == each.sent for each in distant)
