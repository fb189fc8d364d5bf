"""Merging and splitting give what MindSpore's own transform_checkpoints gives, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sharded import MATRICES, numbered

from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.adapters.storage.strategy_file import encode_stage, encode_strategy, read_strategy
from glm3sdk.bootstrap.resharding import merge_checkpoint, split_checkpoint
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec

Plan = tuple[Sequence[int], Sequence[Any], int, int]
"""dev_matrix, tensor_map, opt_weight_shard_step and opt_weight_shard_size of a tensor."""

BFLOAT16 = ml_dtypes.bfloat16


@pytest.fixture(scope="module")
def ms() -> Iterator[Any]:
    import mindspore

    return mindspore


def strategy_file(path: Path, plans: Mapping[str, Plan], stage: int = 0) -> Path:
    """A stage's strategy as MindSpore writes it, by its own classes."""
    if path.suffix == ".json":
        layouts = {
            name: {
                "dev_matrix": list(matrix),
                "tensor_map": list(tensor_map),
                "param_split_shape": [],
                "indices_offset": [],
                "field": 0,
                "opt_weight_shard_step": step,
                "opt_weight_shard_size": size,
            }
            for name, (matrix, tensor_map, step, size) in plans.items()
        }
        operator = {"stage": stage, "parallel_strategy": [[1]]}
        content = {
            "current_stage": stage,
            "parallel_strategy_item": {f"op{stage}": operator},
            "parallel_layout_item": layouts,
        }
        path.write_text(json.dumps(content))
        return path
    from mindspore.train import node_strategy_pb2

    content = node_strategy_pb2.ParallelStrategyMap(current_stage=stage)
    operator = content.parallel_strategy_item.add(node_name=f"op{stage}")
    operator.parallel_strategys.stage = stage
    for name, (matrix, tensor_map, step, size) in plans.items():
        layout = content.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=matrix)
        nested = any(isinstance(part, list) for part in tensor_map)
        maps = [np.atleast_1d(part) for part in tensor_map] if nested else [tensor_map]
        for part in maps:
            layout.tensor_map.add(dim=part)
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size = 0, step, size
    path.write_bytes(content.SerializeToString())
    return path


def write(path: Path, tensors: Mapping[str, HostArray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = {name: TensorSpec(a.shape, a.dtype.name) for name, a in tensors.items()}
    write_mindspore_ckpt(path, specs, tensors.items())
    return path


def contents(path: Path) -> dict[str, tuple[TensorSpec, bytes]]:
    reader = MindSporeCkptFile(path)
    return {name: (spec, reader.read(name).tobytes()) for name, spec in reader.tensors.items()}


def tree(directory: Path) -> dict[str, dict[str, tuple[TensorSpec, bytes]]]:
    """Every rank's tensors."""
    files = sorted(directory.glob("rank_*/*.ckpt"))
    return {str(file.relative_to(directory)): contents(file) for file in files}


def same(tensors: Mapping[str, HostArray]) -> dict[str, tuple[TensorSpec, bytes]]:
    return {
        name: (TensorSpec(array.shape, array.dtype.name), array.tobytes())
        for name, array in tensors.items()
    }


def check_against_mindspore(
    ms: Any, folder: Path, strategy: Path, other: Path, tensors: Mapping[str, HostArray]
) -> None:
    """Split a checkpoint, merge it, and lay it out anew, by MindSpore and by us.

    Args:
        folder: where there is nothing yet.
        strategy: one file, for MindSpore reads no directory.
        other: the strategy to lay the split checkpoint out anew.
        tensors: what the checkpoint holds.
    """
    write(folder / "whole" / "rank_0" / "x.ckpt", tensors)
    theirs, ours = folder / "theirs", folder / "ours"
    ms.transform_checkpoints(str(folder / "whole"), str(theirs), "p_", None, str(strategy))
    split_checkpoint(folder / "whole", ours, strategy=strategy, prefix="p_")
    assert tree(ours) == tree(theirs)
    assert tree(theirs)

    ms.transform_checkpoints(str(ours), str(folder / "merged"), "m_", str(strategy), None)
    assert contents(folder / "merged" / "rank_0" / "m_0.ckpt") == same(tensors)
    merge_checkpoint(theirs, folder / "m.ckpt", strategy=strategy, check_replicas=True)
    assert contents(folder / "m.ckpt") == same(tensors)

    ms.transform_checkpoints(str(ours), str(folder / "moved"), "p_", str(strategy), str(other))
    split_checkpoint(theirs, folder / "anew", strategy=other, source_strategy=strategy, prefix="p_")
    assert tree(folder / "anew") == tree(folder / "moved")


CASES: dict[str, tuple[dict[str, Plan], dict[str, Plan]]] = {
    "tensor parallel, then one more way": (
        {"w": ([2], [0, -1], 0, 0), "v": ([2], [-1, 0], 0, 0), "b": ([2], [0], 0, 0)},
        {"w": ([4], [-1, 0], 0, 0), "v": ([4], [0, -1], 0, 0), "b": ([4], [-1], 0, 0)},
    ),
    "data x tensor parallel, then fewer ranks": (
        {"w": ([2, 2], [0, -1], 0, 0), "v": ([2, 2], [1, 0], 0, 0), "b": ([2, 2], [-1], 0, 0)},
        {"w": ([2], [-1, -1], 0, 0), "v": ([2], [0, -1], 0, 0), "b": ([2], [0], 0, 0)},
    ),
    "optimizer shards, then tensor parallel": (
        {"w": ([4], [-1, -1], 1, 4), "v": ([4], [-1, -1], 1, 2), "b": ([4], [-1], 1, -1)},
        {"w": ([2, 2], [0, -1], 0, 0), "v": ([2, 2], [-1, 1], 0, 0), "b": ([2, 2], [0], 0, 0)},
    ),
    "tensor parallel x optimizer shards, then replicas": (
        {"w": ([2, 2], [0, -1], 2, 2), "v": ([2, 2], [-1, 0], 2, -1), "b": ([2, 2], [1], 1, 2)},
        {"w": ([4], [-1, -1], 0, 0), "v": ([4], [-1, -1], 0, 0), "b": ([4], [-1], 0, 0)},
    ),
    "a dimension over two axes": (
        {"w": ([2, 2], [[1, 0], -1], 0, 0), "v": ([2, 2], [-1, [0, 1]], 0, 0)},
        {"w": ([2, 2, 2], [[1, 0], -1], 4, 2), "v": ([2, 2, 2], [[2, 0], [1]], 0, 0)},
    ),
}
TENSORS = {
    "w": numbered((16, 8), np.float16),
    "v": numbered((8, 16), BFLOAT16),
    "b": numbered((8,), np.float32),
}
BESIDES = {"step": np.array(9, np.int32), "unlisted": numbered((3, 2))}


# MindSpore's JSON has no dimension over two axes.
@pytest.mark.parametrize(
    ("case", "suffix"),
    [(case, ".ckpt") for case in CASES] + [(c, ".json") for c in CASES if "two axes" not in c],
)
def test_each_kind_of_parallelism_is_mindspores(ms: Any, tmp_path: Path, case: str, suffix: str):
    first, second = CASES[case]
    tensors = {name: TENSORS[name] for name in first} | BESIDES
    check_against_mindspore(
        ms,
        tmp_path / "work",
        strategy_file(tmp_path / f"first{suffix}", first),
        strategy_file(tmp_path / f"second{suffix}", second),
        tensors,
    )


def random_plan(rng: random.Random, dimensions: int) -> Plan:
    """A layout over eight devices such as MindSpore's operators make them."""
    matrix = rng.choice(MATRICES)
    # From left to right, for the reason that the last test of this file gives.
    axes = sorted(rng.sample(range(len(matrix)), rng.randint(0, min(dimensions, len(matrix)))))
    places = sorted(rng.sample(range(dimensions), len(axes)))
    tensor_map = [-1] * dimensions
    for place, axis in zip(places, reversed(axes), strict=True):
        tensor_map[place] = axis
    unused = [a for a in range(len(matrix)) if a not in axes and matrix[-1 - a] > 1]
    replicas = int(np.prod([matrix[-1 - axis] for axis in unused]))
    sizes = [0] if replicas == 1 else [0, -1, *(n for n in (2, 4, 8) if replicas % n == 0)]
    size = rng.choice(sizes)
    step = int(np.prod(matrix[len(matrix) - unused[0] :])) if size else 0
    return matrix, tensor_map, step, size


def test_layouts_at_random_are_mindspores(ms: Any, tmp_path: Path):
    rng = random.Random(6)
    shapes = [(64,), (64, 8), (8, 64), (64, 8, 8)]
    tensors = {f"t{i}": numbered(shapes[i % 4], start=i) for i in range(60)}
    first, second = (
        {name: random_plan(rng, array.ndim) for name, array in tensors.items()} for _ in range(2)
    )
    check_against_mindspore(
        ms,
        tmp_path / "work",
        strategy_file(tmp_path / "first.ckpt", first),
        strategy_file(tmp_path / "second.ckpt", second),
        tensors,
    )


STAGES: tuple[dict[str, Plan], ...] = (
    {"w": ([2], [0, -1], 0, 0), "b": ([2], [-1], 1, 2), "shared": ([2], [0, -1], 0, 0)},
    {"v": ([2], [-1, 0], 0, 0), "shared": ([2], [0, -1], 0, 0)},
)


@pytest.fixture(params=[".ckpt", ".json"])
def stages(ms: Any, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A directory with the files of two stages, and MindSpore's merge of them."""
    folder = tmp_path / "strategy"
    folder.mkdir()
    for stage, plans in enumerate(STAGES):
        strategy_file(folder / f"stage_{stage}{request.param}", plans, stage)
    # Each rank of a stage writes the file of its stage.
    (folder / f"stage_1_again{request.param}").write_bytes(
        (folder / f"stage_1{request.param}").read_bytes()
    )
    merged = tmp_path / f"merged{request.param}"
    ms.merge_pipeline_strategys(str(folder), str(merged))
    return folder, merged


def test_pipeline_stages_are_mindspores(ms: Any, tmp_path: Path, stages: tuple[Path, Path]):
    folder, merged = stages
    assert read_strategy(folder) == read_strategy(merged)
    tensors = TENSORS | {"shared": numbered((4, 2), start=5)}
    four = {name: ([4], [0, *[-1] * (a.ndim - 1)], 0, 0) for name, a in tensors.items()}
    other = strategy_file(tmp_path / f"four{merged.suffix}", four)
    check_against_mindspore(ms, tmp_path / "work", merged, other, tensors)
    merge_checkpoint(tmp_path / "work" / "theirs", tmp_path / "a.ckpt", strategy=folder)
    assert contents(tmp_path / "a.ckpt") == same(tensors)


def test_a_strategy_directory_is_left_as_it_was(tmp_path: Path, stages: tuple[Path, Path]):
    def snapshot() -> dict[str, Any]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_mode)
            + ((path.read_bytes(),) if path.is_file() else ())
            for path in (folder, *folder.iterdir())
        }

    folder, _ = stages
    folder.chmod(0o500)
    before = snapshot()
    whole = write(tmp_path / "whole.ckpt", TENSORS | {"shared": numbered((4, 2))})
    split_checkpoint(whole, tmp_path / "split", strategy=folder)
    split_checkpoint(tmp_path / "split", tmp_path / "anew", strategy=folder, source_strategy=folder)
    merge_checkpoint(tmp_path / "anew", tmp_path / "again.ckpt", strategy=folder)
    assert snapshot() == before
    assert contents(tmp_path / "again.ckpt") == contents(whole)
    folder.chmod(0o700)


def test_mindspore_reads_the_strategies_that_we_write(ms: Any, tmp_path: Path):
    def layouts(plans: Mapping[str, Plan]) -> dict[str, Layout]:
        return {
            name: Layout(matrix, tensor_map, (), (), step, size)
            for name, (matrix, tensor_map, step, size) in plans.items()
        }

    one = CASES["a dimension over two axes"][1]
    tensors = {name: TENSORS[name] for name in one}
    for name, strategy in {
        "one": Strategy((layouts(one),)),
        "two": Strategy(tuple(map(layouts, STAGES))),
    }.items():
        file = tmp_path / f"{name}.ckpt"
        file.write_bytes(encode_strategy(strategy))
        assert read_strategy(file) == strategy
        values = tensors if name == "one" else TENSORS | {"shared": numbered((4, 2))}
        check_against_mindspore(ms, tmp_path / name, file, file, values)

    folder = tmp_path / "stages"
    folder.mkdir()
    for stage, plans in enumerate(STAGES):
        (folder / f"{stage}.ckpt").write_bytes(encode_stage(layouts(plans), stage=stage))
    ms.merge_pipeline_strategys(str(folder), str(tmp_path / "merged.ckpt"))
    assert read_strategy(tmp_path / "merged.ckpt") == read_strategy(tmp_path / "two.ckpt")


def test_pieces_of_unequal_length_are_merged_as_mindspore_merges_them(ms: Any, tmp_path: Path):
    from mindspore.train import node_strategy_pb2

    layout = node_strategy_pb2.ParallelLayouts(
        field=0, opt_weight_shard_step=0, opt_weight_shard_size=0
    )
    layout.dev_matrix.add(dim=[3])
    layout.tensor_map.add(dim=[0, -1])
    layout.param_split_shape.add(dim=[5, 1, 2])
    layout.indices_offset.add(dim=[0, 5, 6])
    content = node_strategy_pb2.ParallelStrategyMap(current_stage=0)
    content.parallel_layout_item.add(param_name="w").parallel_layouts.CopyFrom(layout)
    (tmp_path / "s.ckpt").write_bytes(content.SerializeToString())
    pieces = np.split(numbered((8, 2)), [5, 6])
    for rank, piece in enumerate(pieces):
        write(tmp_path / "src" / f"rank_{rank}" / "x.ckpt", {"w": piece})
    merge_checkpoint(tmp_path / "src", tmp_path / "m.ckpt", strategy=tmp_path / "s.ckpt")

    parameters = [ms.Parameter(ms.Tensor(piece), name="w") for piece in pieces]
    theirs = ms.merge_sliced_parameter(parameters, {"w": layout}).asnumpy()
    assert contents(tmp_path / "m.ckpt") == same({"w": theirs})


def test_optimizer_shards_do_not_change_which_ranks_hold_a_piece(ms: Any, tmp_path: Path):
    """MindSpore's transform forgets the order of the axes where it adds optimizer shards.

    It does so where the replicas lie along the first axis and the dimensions take the others
    from right to left. Without the shards it keeps the order, and so does the run that wrote
    them; ours is the same with and without.
    """
    tensors = {"w": numbered((16, 8))}
    write(tmp_path / "whole" / "rank_0" / "x.ckpt", tensors)
    pieces: dict[str, list[HostArray]] = {}
    for name, plan in {
        "without": ([2, 2, 2], [0, 1], 0, 0),
        "with": ([2, 2, 2], [0, 1], 4, 2),
    }.items():
        strategy = strategy_file(tmp_path / f"{name}.ckpt", {"w": plan})
        transforms: dict[str, Callable[[Path], Any]] = {
            "theirs": lambda out, file=strategy: ms.transform_checkpoints(
                str(tmp_path / "whole"), str(out), "p_", None, str(file)
            ),
            "ours": lambda out, file=strategy: split_checkpoint(
                tmp_path / "whole", out, strategy=file, prefix="p_"
            ),
        }
        for whose, transform in transforms.items():
            out = tmp_path / f"{whose} {name}"
            transform(out)
            pieces[out.name] = [
                MindSporeCkptFile(out / f"rank_{rank}" / f"p_{rank}.ckpt").read("w")
                for rank in range(8)
            ]

    def gathered(shards: list[HostArray]) -> list[bytes]:
        """What the ranks 0 to 3 hold with the shards of their replicas 4 to 7."""
        return [np.concatenate([shards[rank], shards[rank + 4]]).tobytes() for rank in range(4)]

    without = [piece.tobytes() for piece in pieces["theirs without"][:4]]
    assert [piece.tobytes() for piece in pieces["ours without"][:4]] == without
    assert gathered(pieces["ours with"]) == without
    assert gathered(pieces["theirs with"]) != without
