from __future__ import annotations

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
