from __future__ import annotations

import attrs
import pytest

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place, tensor_choices
from glm3sdk.errors import InvalidParallelPlanError, UserError

SIX_B = Glm3Config.preset("glm3-6b")


def test_tensor_ranks_are_neighbours_and_data_ranks_stand_apart() -> None:
    place = ParallelPlan(data=3, tensor=4).place(6)
    assert (place.data_rank, place.tensor_rank) == (1, 2)
    assert place.tensor_ranks == (4, 5, 6, 7)
    assert place.data_ranks == (2, 6, 10)
    assert place.every_rank == tuple(range(12))


def test_every_rank_is_in_each_of_its_groups_and_groups_do_not_overlap() -> None:
    plan = ParallelPlan(data=4, tensor=8)
    for groups in (
        [plan.place(rank).tensor_ranks for rank in range(32)],
        [plan.place(rank).data_ranks for rank in range(32)],
        [plan.place(rank).group_ranks(SIX_B) for rank in range(32)],
        [plan.place(rank).shard_ranks(2) for rank in range(32)],
    ):
        assert all(rank in group for rank, group in enumerate(groups))
        assert sorted(rank for group in set(groups) for rank in group) == list(range(32))


def test_ranks_that_outnumber_the_groups_hold_each_group_on_several() -> None:
    plan = ParallelPlan(tensor=8)
    assert plan.place(5).group_ranks(SIX_B) == (4, 5, 6, 7)
    assert ParallelPlan(tensor=2).place(1).group_ranks(SIX_B) == (1,)
    assert plan.place(5).local_config(SIX_B).multi_query_group_num == 1
    assert plan.place(5).local_config(SIX_B).num_attention_heads == 4


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32])
def test_the_6b_model_can_be_cut_by_these(tensor: int) -> None:
    ParallelPlan(tensor=tensor).check(SIX_B)
    assert tensor in tensor_choices(SIX_B)


def test_a_refused_number_of_ranks_is_answered_with_those_that_would_do() -> None:
    for tensor in set(range(1, 70)) - set(tensor_choices(SIX_B)):
        with pytest.raises(InvalidParallelPlanError, match=r"use one of 1, 2, 4, 8, 16, 32$"):
            ParallelPlan(tensor=tensor).check(SIX_B)
    six = Glm3Config(num_attention_heads=12, multi_query_group_num=4, ffn_hidden_size=12)
    six = attrs.evolve(six, padded_vocab_size=12)
    # 6 ranks share out all but the groups: 4 of 6 would hold one, and none can hold a half.
    assert ParallelPlan(tensor=6).tensor_faults(six) == (
        "multi_query_group_num=4 (nor the other way round)",
    )
    assert tensor_choices(six) == (1, 2, 4, 12)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (3, ["num_attention_heads=32", "ffn_hidden_size=13696", "padded_vocab_size=65024"]),
        (64, ["num_attention_heads=32"]),
        (5, ["multi_query_group_num=2"]),
    ],
)
def test_what_cannot_be_cut_is_named(tensor: int, named: list[str]) -> None:
    with pytest.raises(InvalidParallelPlanError) as raised:
        ParallelPlan(tensor=tensor).check(SIX_B)
    assert isinstance(raised.value, UserError)
    for size in [f"parallel.tensor={tensor}", *named]:
        assert size in str(raised.value)


def test_a_plan_for_other_devices_says_how_many_it_needs() -> None:
    plan = ParallelPlan(data=4, tensor=2)
    plan.check(SIX_B, devices=8)
    with pytest.raises(InvalidParallelPlanError, match="needs 8 devices and there are 6"):
        plan.check(SIX_B, devices=6)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_plan_counts_from_one(value: object) -> None:
    with pytest.raises(InvalidParallelPlanError, match=r"parallel\.tensor"):
        ParallelPlan(tensor=value)  # type: ignore[arg-type]


def test_a_rank_outside_the_plan_is_refused() -> None:
    with pytest.raises(InvalidParallelPlanError, match="no rank 4"):
        ParallelPlan(data=2, tensor=2).place(4)


def test_data_ranks_share_out_the_micro_batches_and_number_them_as_one_process_does() -> None:
    batches = [f"batch {number}" for number in range(6)]
    for data in (1, 2, 3):
        plan, seen = ParallelPlan(data=data, tensor=2), []
        for rank in range(plan.ranks):
            place = plan.place(rank)
            for index, batch in enumerate(place.micro_batches(batches)):
                assert batches[place.micro_batch(index)] == batch
                seen.append(batch)
        assert sorted(seen) == sorted(batches * 2)  # each by two tensor ranks


def test_a_process_without_a_plan_is_alone() -> None:
    assert Place().alone
    assert Place().local_config(SIX_B) == SIX_B
