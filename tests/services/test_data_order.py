from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.services.data_order import DataOrder

SIZES = st.integers(1, 5)


@given(st.integers(1, 60), SIZES, SIZES, SIZES, st.integers(-3, 2**70))
def test_every_record_comes_once_an_epoch_over_all_ranks(
    records: int, batch_size: int, accumulate: int, world: int, seed: int
):
    orders = [
        DataOrder(
            records=records,
            batch_size=batch_size,
            accumulate=accumulate,
            world=world,
            rank=rank,
            seed=seed,
        )
        for rank in range(world)
    ]
    stream: list[int] = []
    for index in range(orders[0].steps(3) * accumulate):
        for order in orders:
            batch = order.batch(index)
            assert batch.shape == (batch_size,)
            stream += batch.tolist()
    assert 0 <= len(stream) - 3 * records < orders[0].step_records
    for epoch in range(3):
        seen = stream[epoch * records : (epoch + 1) * records]
        assert sorted(seen) == list(range(records))


def test_ranks_and_micro_batches_share_out_the_same_step():
    alone = DataOrder(records=50, batch_size=12)
    shared = [
        DataOrder(records=50, batch_size=2, accumulate=3, world=2, rank=rank) for rank in range(2)
    ]
    for step in range(10):
        parts = [micro for order in shared for micro in order.micro_batches(step)]
        assert sorted(np.concatenate(parts)) == sorted(alone.batch(step))


def test_a_step_needs_no_step_before_it():
    def order() -> DataOrder:
        return DataOrder(records=1000, batch_size=7, accumulate=2, seed=5)

    walked = order()
    steps = [np.concatenate(walked.micro_batches(step)) for step in range(300)]
    np.testing.assert_array_equal(np.concatenate(order().micro_batches(299)), steps[299])


def test_seed_and_epoch_decide_the_order():
    first = DataOrder(records=100, batch_size=100)
    assert first.batch(0).tolist() != first.batch(1).tolist()
    assert (
        first.batch(0).tolist() != DataOrder(records=100, batch_size=100, seed=1).batch(0).tolist()
    )


def philox(key: int, counter: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    word, left, right = 2**64 - 1, key, 0
    block = [counter, 0, 0, 0]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * block[0], 0xCA5A826395121157 * block[2]
        block = [
            second >> 64 ^ block[1] ^ left,
            second & word,
            first >> 64 ^ block[3] ^ right,
            first & word,
        ]
        left, right = (left + 0x9E3779B97F4A7C15) & word, (right + 0xBB67AE8584CAA73B) & word
    return block


def test_the_order_follows_from_the_published_generator_in_every_numpy():
    # A run may be resumed under another version, and must find the order that it had.
    words = philox(3, 1) + philox(3, 2)
    expected = sorted(range(8), key=words.__getitem__)
    assert DataOrder(records=8, batch_size=8, seed=3).batch(0).tolist() == expected


def test_without_shuffling_the_file_order_is_kept():
    order = DataOrder(records=5, batch_size=3, shuffle=False)
    assert [order.batch(index).tolist() for index in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert order.steps(1) == 2
    assert order.epoch(5) == 3.0


@pytest.mark.parametrize("wrong", [{"records": 0}, {"batch_size": 0}, {"rank": 1}, {"rank": -1}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataOrder(**{"records": 5, "batch_size": 1, **wrong})
