from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharded import DEVICES, layouts

from glm3sdk.domain.sharding import Layout, Strategy, overlap, shape_of, whole, within
from glm3sdk.errors import InvalidCheckpointError


def rows(layout: Layout, length: int) -> list[tuple[int, int]]:
    """The rows of a vector that each rank holds."""
    parts = (layout.region((length,), rank)[0] for rank in range(layout.devices))
    return [(part.start, part.stop) for part in parts]


def test_a_column_split_gives_each_rank_its_columns():
    layout = Layout([2], [-1, 0])
    assert layout.region((4, 6), 0) == (slice(0, 4), slice(0, 3))
    assert layout.region((4, 6), 1) == (slice(0, 4), slice(3, 6))
    assert layout.full_shape((4, 3)) == (4, 6)


def test_axes_are_counted_from_the_right_and_the_last_one_is_fastest():
    # Ranks 0 1 / 2 3: axis 1 is the row, axis 0 the column.
    assert rows(Layout([2, 2], [1]), 4) == [(0, 2), (0, 2), (2, 4), (2, 4)]
    assert rows(Layout([2, 2], [0]), 4) == [(0, 2), (2, 4), (0, 2), (2, 4)]


def test_several_axes_split_a_dimension_one_in_the_other():
    assert rows(Layout([2, 2], [[1, 0]]), 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert rows(Layout([2, 2], [[0, 1]]), 4) == [(0, 1), (2, 3), (1, 2), (3, 4)]


def test_optimizer_shards_split_a_piece_among_its_replicas():
    layout = Layout([2, 2], [0], opt_weight_shard_step=2, opt_weight_shard_size=2)
    assert rows(layout, 8) == [(0, 2), (4, 6), (2, 4), (6, 8)]
    assert layout.full_shape((2,)) == (8,)


def test_minus_one_is_an_optimizer_shard_for_every_replica():
    layout = Layout([4], [-1], opt_weight_shard_step=1, opt_weight_shard_size=-1)
    assert rows(layout, 8) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_fewer_optimizer_shards_than_replicas_go_round_among_neighbours():
    layout = Layout([4], [-1], opt_weight_shard_step=1, opt_weight_shard_size=2)
    assert rows(layout, 4) == [(0, 2), (2, 4), (0, 2), (2, 4)]


def test_pieces_of_unequal_length_follow_each_other():
    layout = Layout([3], [0, -1], param_split_shape=[5, 1, 2])
    assert [layout.region((8, 2), rank)[0] for rank in range(3)] == [
        slice(0, 5),
        slice(5, 6),
        slice(6, 8),
    ]
    assert layout.full_shape((5, 2)) == (8, 2)


def test_no_device_matrix_is_one_device():
    assert Layout([], [-1, -1]).region((2, 3), 0) == whole((2, 3))


@given(layout=layouts(), dimensions=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_the_ranks_together_hold_every_element_equally_often(
    layout: Layout, dimensions: tuple[int, int]
):
    shape = tuple(8 * size for size in dimensions)
    count: Counter[tuple[int, int]] = Counter()
    for rank in range(DEVICES):
        region = layout.region(shape, rank)
        count.update(
            (y, x) for y in range(*region[0].indices(99)) for x in range(*region[1].indices(99))
        )
        assert layout.full_shape(shape_of(region)) == shape
    assert set(count.values()) == {layout.replicas // layout.optimizer_shards}
    assert len(count) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"dev_matrix": [2, 2], "tensor_map": [2, -1]}, "dev_matrix has 2 axes"),
        ({"dev_matrix": [2, 2], "tensor_map": [-2]}, "dev_matrix has 2 axes"),
        ({"dev_matrix": [2, 2], "tensor_map": [0, 0]}, "an axis splits two dimensions"),
        ({"dev_matrix": [2, 0], "tensor_map": [0]}, "sizes of dev_matrix begin at 1"),
        (
            {"dev_matrix": [4], "tensor_map": [-1], "opt_weight_shard_size": 3},
            "3 optimizer shards do not divide the 4 replicas",
        ),
        (
            {"dev_matrix": [4], "tensor_map": [-1], "opt_weight_shard_size": 8},
            "8 optimizer shards do not divide the 4 replicas",
        ),
        ({"dev_matrix": [4], "tensor_map": [-1], "opt_weight_shard_size": -2}, "-2 optimizer"),
        (
            {
                "dev_matrix": [2, 2],
                "tensor_map": [0],
                "opt_weight_shard_size": 2,
                "opt_weight_shard_step": 1,
            },
            "opt_weight_shard_step is 1, and neighbouring replicas are 2 apart",
        ),
        (
            {"dev_matrix": [2], "tensor_map": [-1], "opt_weight_shard_size": 2},
            "opt_weight_shard_step is 0",
        ),
        (
            {"dev_matrix": [2], "tensor_map": [], "opt_weight_shard_size": 2},
            "a tensor of no dimensions",
        ),
        (
            {"dev_matrix": [2], "tensor_map": [0], "param_split_shape": [1]},
            "param_split_shape has 1 lengths, not one a piece",
        ),
        (
            {"dev_matrix": [2, 2], "tensor_map": [0, 1], "param_split_shape": [1, 2, 3, 3]},
            "makes no whole tensor",
        ),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(layout: dict, message: str):
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        Layout(**layout)
    assert f"dev_matrix {layout['dev_matrix']}" in str(caught.value)


def test_a_shape_that_does_not_divide_is_refused():
    with pytest.raises(InvalidCheckpointError, match=r"\[3, 4\] is not divisible by \[2, 1\]"):
        Layout([2], [0, -1]).region((3, 4), 0)
    with pytest.raises(InvalidCheckpointError, match="3 rows, which 2 optimizer shards"):
        Layout([2], [-1], opt_weight_shard_step=1, opt_weight_shard_size=2).region((3,), 0)
    with pytest.raises(InvalidCheckpointError, match="another number of dimensions"):
        Layout([2], [0, -1]).region((4,), 0)
    with pytest.raises(InvalidCheckpointError, match="do not make up the shape"):
        Layout([2], [0], param_split_shape=[1, 2]).region((4,), 0)
    with pytest.raises(InvalidCheckpointError, match="it has no rank 2"):
        Layout([2], [0]).region((4,), 2)


def test_stages_follow_each_other_and_hold_their_own_tensors():
    layout = Layout([2], [0])
    strategy = Strategy(({"a": layout, "both": layout}, {"b": layout, "both": layout}))
    assert strategy.world_size == 4
    assert list(strategy.holders("a")) == [0, 1]
    assert list(strategy.holders("b")) == [2, 3]
    assert list(strategy.holders("both")) == [0, 1, 2, 3]
    assert strategy.region("b", (4,), 3) == (slice(2, 4),)
    assert strategy.region("b", (4,), 1) is None


def test_a_tensor_that_no_stage_lists_is_whole_on_every_rank():
    strategy = Strategy(({"a": Layout([2], [0])},) * 2)
    assert list(strategy.holders("step")) == [0, 1, 2, 3]
    assert strategy.region("step", (3,), 3) == (slice(0, 3),)


def test_a_strategy_of_nothing_or_of_unequal_stages_is_refused():
    with pytest.raises(InvalidCheckpointError, match="lists no tensor"):
        Strategy(({},))
    with pytest.raises(InvalidCheckpointError, match="tensor a over 2 devices and b over 4"):
        Strategy(({"a": Layout([2], [0])}, {"b": Layout([2, 2], [0])}))
    with pytest.raises(InvalidCheckpointError, match="is it damaged"):
        Strategy(({"a": Layout([1 << 31], [0])},))
    with pytest.raises(InvalidCheckpointError, match="ranks 0 to 1, and no rank 2"):
        Strategy(({"a": Layout([2], [0])},)).region("a", (4,), 2)


def test_regions_overlap_where_both_have_elements():
    a, b = (slice(0, 4), slice(2, 6)), (slice(2, 8), slice(0, 3))
    common = overlap(a, b)
    assert common == (slice(2, 4), slice(2, 3))
    assert within(common, a) == (slice(2, 4), slice(0, 1))
    assert overlap(a, (slice(4, 8), slice(0, 6))) is None
    assert overlap((), ()) == ()
