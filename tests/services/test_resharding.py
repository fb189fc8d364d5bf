from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharded import Arrays, layouts, numbered

from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.services.resharding import MergedShards, RankView, Shard, split_tensors
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract

ROWS, COLUMNS = Layout([2], [0, -1]), Layout([2], [-1, 0])
TWO_STAGES = Strategy(({"a": ROWS, "shared": ROWS}, {"b": COLUMNS, "shared": COLUMNS}))


def shards(full: Mapping[str, HostArray], strategy: Strategy) -> list[Shard]:
    """What each rank holds, each in memory of its own."""
    views = split_tensors(Arrays(full), strategy)
    return [
        Shard(Arrays({name: view.read(name) for name in view.tensors}), f"rank_{rank}/x.ckpt")
        for rank, view in enumerate(views)
    ]


def equal(reader: CheckpointReader, full: Mapping[str, HostArray]) -> bool:
    return list(reader.tensors) == list(full) and all(
        reader.read(name).tobytes() == array.tobytes() for name, array in full.items()
    )


class TestMergedShards(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        return {
            "rows": numbered((8, 6)),
            "columns": numbered((8, 6), np.float16),
            "shards": numbered((8, 4), np.int64),
            "vector": numbered((8,)),
            "scale": np.array(3, np.float32),
            "nothing": np.empty((0, 4), np.float32),
        }

    @pytest.fixture
    def strategy(self) -> Strategy:
        sharded = {"opt_weight_shard_step": 2, "opt_weight_shard_size": 2}
        return Strategy(
            (
                {
                    "rows": Layout([2, 2], [0, -1], **sharded),
                    "columns": Layout([2, 2], [1, 0]),
                    "shards": Layout([2, 2], [[1, 0], -1]),
                    "scale": Layout([2, 2], []),
                },
            )
        )

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray], strategy: Strategy) -> CheckpointReader:
        return MergedShards(shards(expected, strategy), strategy)


class TestRankView(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        return {"a": numbered((4, 6), start=24), "vector": numbered((5,))}

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray]) -> CheckpointReader:
        full = Arrays({"a": numbered((8, 6)), "vector": expected["vector"]})
        return RankView(full, Strategy(({"a": ROWS},)), 1)


@given(
    written=st.tuples(layouts(2), layouts(1), layouts(3)),
    read=st.tuples(layouts(2), layouts(1), layouts(3)),
)
def test_a_checkpoint_split_by_any_layout_merges_to_the_same(
    written: tuple[Layout, ...], read: tuple[Layout, ...]
):
    full = {
        "matrix": numbered((8, 16)),
        "vector": numbered((8,), np.float16),
        "cube": numbered((8, 8, 8), np.int32),
        "step": np.array(7),
    }
    first, second = (Strategy((dict(zip(full, parts, strict=False)),)) for parts in (written, read))
    merged = MergedShards(shards(full, first), first)
    assert equal(merged, full)
    # Laid out anew from the shards, as from the whole.
    for anew, direct in zip(
        split_tensors(merged, second), split_tensors(Arrays(full), second), strict=True
    ):
        assert equal(anew, {name: direct.read(name) for name in direct.tensors})


def test_only_the_ranks_that_have_a_slice_are_read():
    strategy = Strategy(({"a": Layout([2, 4], [0, -1])},))
    parts = shards({"a": numbered((8, 3))}, strategy)
    merged = MergedShards(parts, strategy)
    merged.read("a", (slice(3, 6),))
    assert [rank for rank, part in enumerate(parts) if part.reader.reads] == [1, 2]
    assert merged.read("a", (slice(4, 4),)).shape == (0, 3)
    merged.read("a")
    assert [len(part.reader.reads) for part in parts] == [1, 2, 2, 1, 0, 0, 0, 0]


def test_a_tensor_of_two_stages_is_read_from_the_first():
    full = {"a": numbered((4, 4)), "shared": numbered((4, 2)), "b": numbered((2, 4))}
    parts = shards(full, TWO_STAGES)
    assert [list(part.reader.tensors) for part in parts] == [["a", "shared"]] * 2 + [
        ["shared", "b"]
    ] * 2
    assert equal(MergedShards(parts, TWO_STAGES), full)
    assert ["shared" in part.reader.reads for part in parts] == [True, True, False, False]


def test_what_strategies_list_and_checkpoints_lack_is_left_alone():
    strategy = Strategy(({"a": ROWS, "adam_m.a": ROWS},))
    full = {"a": numbered((4, 4))}
    assert equal(MergedShards(shards(full, strategy), strategy), full)


def test_replicas_that_differ_are_named():
    strategy = Strategy(({"a": Layout([2, 2], [0])},))
    full = {"a": numbered((4,)), "step": np.array(3)}
    parts = shards(full, strategy)
    merged = MergedShards(parts, strategy)
    for name in full:
        merged.check_replicas(name)
    parts[3].reader.arrays["a"][0] += 1
    parts[2].reader.arrays["step"] += 1
    with pytest.raises(
        InvalidCheckpointError,
        match=r"tensor a of rank 3 \(rank_3/x.ckpt\) .* replica of rank 1 \(rank_1/x.ckpt\)",
    ):
        merged.check_replicas("a")
    with pytest.raises(InvalidCheckpointError, match=r"tensor step of rank 2 .* of rank 0"):
        merged.check_replicas("step")
    assert equal(merged, full), "of replicas the lowest rank's is taken"


def test_replicas_in_stages_that_split_differently_are_compared_too():
    full = {"a": numbered((4, 4)), "shared": numbered((4, 2)), "b": numbered((2, 4))}
    parts = shards(full, TWO_STAGES)
    merged = MergedShards(parts, TWO_STAGES)
    merged.check_replicas("shared")
    parts[3].reader.arrays["shared"][3, 0] += 1
    with pytest.raises(InvalidCheckpointError, match="tensor shared of rank 3"):
        merged.check_replicas("shared")


def test_one_of_the_ranks_that_hold_the_same_part_is_enough():
    layouts = {"a": Layout([2, 2], [0, -1]), "b": Layout([2, 2], [-1, 0], (), (), 2, 2)}
    strategy = Strategy((layouts,))
    full = {"a": numbered((4, 4)), "b": numbered((4, 2)), "step": np.array(3, np.float32)}
    parts = shards(full, strategy)
    for rank in (2, 3):
        change(parts, rank, "a", None)
        change(parts, rank, "step", None)
    assert equal(MergedShards(parts, strategy), full)
    change(parts, 1, "a", None)
    with pytest.raises(
        InvalidCheckpointError, match=r"tensor a: it is missing from rank 1 .*, rank 3"
    ):
        MergedShards(parts, strategy)


def change(parts: list[Shard], rank: int, name: str, array: HostArray | None) -> None:
    arrays = parts[rank].reader.arrays
    del arrays[name]
    if array is not None:
        arrays[name] = array


@pytest.mark.parametrize(
    ("rank", "name", "array", "message"),
    [
        (
            1,
            "a",
            None,
            r"tensor a: it is missing from rank 1 \(rank_1/x.ckpt\) and there on rank 0",
        ),
        (
            1,
            "a",
            numbered((3, 4)),
            r"tensor a: rank 1 \(rank_1/x.ckpt\) has float32 of shape \[3, 4\]",
        ),
        (
            1,
            "a",
            numbered((2, 4), np.float16),
            r"has float16 of shape \[2, 4\], and by the strategy",
        ),
        (0, "a", numbered((3, 4)), r"rank 1 .* it is float32 of shape \[3, 4\]"),
        (0, "a", numbered((4,)), "another number of dimensions"),
        (2, "b", numbered((2, 3)), r"rank 3 \(rank_3/x.ckpt\) has float32 of shape \[2, 2\]"),
        (3, "step", numbered((2,)), r"tensor step: rank 3 .* \[2\], and rank 0 .* same on every"),
    ],
)
def test_shards_that_contradict_the_strategy_are_named(
    rank: int, name: str, array: HostArray | None, message: str
):
    full = {
        "a": numbered((4, 4)),
        "shared": numbered((4, 2)),
        "b": numbered((2, 4)),
        "step": np.array(3, np.float32),
    }
    parts = shards(full, TWO_STAGES)
    change(parts, rank, name, array)
    with pytest.raises(InvalidCheckpointError, match=message):
        MergedShards(parts, TWO_STAGES)


def test_a_tensor_on_the_ranks_of_another_stage_is_named():
    full = {"a": numbered((4, 4)), "b": numbered((2, 4))}
    parts = shards(full, TWO_STAGES)
    parts[2].reader.arrays["a"] = numbered((2, 4))
    with pytest.raises(
        InvalidCheckpointError, match=r"tensor a: it is in rank 2 \(rank_2/x.ckpt\)"
    ):
        MergedShards(parts, TWO_STAGES)


def test_another_number_of_ranks_is_refused():
    strategy = Strategy(({"a": ROWS},))
    parts = shards({"a": numbered((4, 4))}, strategy)
    with pytest.raises(
        InvalidCheckpointError, match=r"for 2 ranks \(1 stages of 2\), and the checkpoint has 1"
    ):
        MergedShards(parts[:1], strategy)


def test_a_strategy_of_another_model_is_refused():
    strategy = Strategy(({"a": ROWS},))
    parts = shards({"a": numbered((4, 4))}, strategy)
    with pytest.raises(InvalidCheckpointError, match=r"lists none of the checkpoint's tensors .a"):
        MergedShards(parts, Strategy(({"z": ROWS},)))
    with pytest.raises(InvalidCheckpointError, match="lists none"):
        split_tensors(Arrays({"a": numbered((4, 4))}), Strategy(({"z": ROWS},)))


def test_a_tensor_that_does_not_divide_is_named():
    with pytest.raises(InvalidCheckpointError, match=r"tensor a: .* is not divisible"):
        split_tensors(Arrays({"a": numbered((3, 4))}), Strategy(({"a": ROWS},)))


def test_entries_that_are_no_tensors_are_left_out():
    strategy = Strategy(({"a": ROWS},))
    full = {"a": numbered((4, 4)), "note": np.array("text")}
    parts = [Shard(Arrays(full | {"a": numbered((2, 4))}), str(rank)) for rank in range(2)]
    merged = MergedShards(parts, strategy)
    assert merged.left_out == ("note",)
    assert list(merged.tensors) == ["a"]
    assert [list(view.tensors) for view in split_tensors(Arrays(full), strategy)] == [["a"]] * 2
