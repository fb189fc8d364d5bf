"""Merging and splitting files, and what may go wrong on the way."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded import Arrays, numbered

from glm3sdk import merge_checkpoint, split_checkpoint
from glm3sdk.adapters.storage.strategy_file import encode_stage, encode_strategy
from glm3sdk.adapters.storage.tensor_file import open_tensor_file, write_tensor_file
from glm3sdk.bootstrap import resharding
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray

TENSORS = {
    "w": numbered((8, 6), np.float16),
    "b": numbered((8,)),
    "step": np.array(3, np.int32),
}
LAYOUTS = {"w": Layout([2], [0, -1]), "b": Layout([2], [0]), "adam_m.w": Layout([2], [0, -1])}


def write(path: Path, tensors: Mapping[str, HostArray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensor_file(path, Arrays(tensors), on_bytes=lambda _: None)
    return path


def read(path: Path) -> dict[str, tuple[Any, bytes]]:
    reader = open_tensor_file(path)
    return {name: (spec, reader.read(name).tobytes()) for name, spec in reader.tensors.items()}


@pytest.fixture
def strategy(tmp_path: Path) -> Path:
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(encode_strategy(Strategy((LAYOUTS,))))
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole.ckpt", TENSORS)


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """Two ranks' files."""
    for rank, half in enumerate((slice(0, 4), slice(4, 8))):
        shares = {"w": TENSORS["w"][half], "b": TENSORS["b"][half], "step": TENSORS["step"]}
        write(tmp_path / "ranks" / f"rank_{rank}" / "run-3.ckpt", shares)
    return tmp_path / "ranks"


def hidden(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_ranks_become_a_file_with_its_sum(
    tmp_path: Path, ranks: Path, whole: Path, strategy: Path, suffix: str
):
    out = tmp_path / "new" / f"merged{suffix}"
    seen: list[tuple[int, int]] = []
    result = merge_checkpoint(
        ranks, out, strategy=strategy, progress=lambda done, total: seen.append((done, total))
    )
    assert read(out) == ({} | read(whole))
    (file,) = result.files
    assert (file.path, file.tensors, file.size) == (out, 3, out.stat().st_size)
    assert (out.parent / f"{out.name}.sha256").read_text() == f"{file.sha256}  {out.name}\n"
    assert result.source_ranks == 2
    total = sum(path.stat().st_size for path in ranks.rglob("*.ckpt")) + 96 + 32 + 4
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sorted(os.listdir(out.parent)) == [out.name, f"{out.name}.sha256"]


def test_a_file_becomes_ranks_and_the_ranks_the_file(
    tmp_path: Path, ranks: Path, whole: Path, strategy: Path
):
    result = split_checkpoint(whole, tmp_path / "split", strategy=strategy, prefix="glm3_")
    places = [Path(f"rank_{rank}") / f"glm3_{rank}.ckpt" for rank in range(2)]
    assert [file.path for file in result.files] == [tmp_path / "split" / place for place in places]
    for rank, place in enumerate(places):
        share = read(tmp_path / "split" / place)
        assert share == read(ranks / f"rank_{rank}" / "run-3.ckpt")
        assert (tmp_path / "split" / f"{place}.sha256").is_file()
    merge_checkpoint(tmp_path / "split", tmp_path / "again.ckpt", strategy=strategy)
    assert (tmp_path / "again.ckpt").read_bytes() == whole.read_bytes()


def test_safetensors_are_split_into_safetensors(tmp_path: Path, strategy: Path):
    source = write(tmp_path / "whole.safetensors", TENSORS)
    split_checkpoint(source, tmp_path / "split", strategy=strategy, format="safetensors")
    names = [path.name for path in sorted((tmp_path / "split").rglob("*.safetensors"))]
    assert names == ["checkpoint_0.safetensors", "checkpoint_1.safetensors"]
    merge_checkpoint(tmp_path / "split", tmp_path / "m.safetensors", strategy=strategy)
    assert (tmp_path / "m.safetensors").read_bytes() == source.read_bytes()


def test_a_models_directory_is_split_by_its_own_names(tmp_path: Path):
    name = "transformer.output_layer.weight"
    strategy = tmp_path / "s.ckpt"
    strategy.write_bytes(encode_stage({name: Layout([2], [-1, 0])}, stage=0))
    split_checkpoint(model_directory("tiny"), tmp_path / "split", strategy=strategy)
    merge_checkpoint(tmp_path / "split", tmp_path / "m.safetensors", strategy=strategy)
    bundled = open_model("tiny").checkpoint
    merged = read(tmp_path / "m.safetensors")
    assert merged.keys() == bundled.tensors.keys()
    assert merged[name] == (bundled.tensors[name], bundled.read(name).tobytes())


def test_only_one_tensor_after_another_is_in_memory(tmp_path: Path, strategy: Path):
    size = 1 << 22
    half = numbered((size // 8,))
    names = [f"t{i}" for i in range(12)]
    strategy.write_bytes(encode_stage({name: Layout([2], [0]) for name in names}, stage=0))
    for rank in range(2):
        write(tmp_path / "src" / f"rank_{rank}" / "a.ckpt", dict.fromkeys(names, half))
    tracemalloc.start()
    try:
        merge_checkpoint(tmp_path / "src", tmp_path / "m.ckpt", strategy=strategy)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The one that is written, the one that is read, and half a one of a shard.
    assert peak < 2.6 * size
    assert (tmp_path / "m.ckpt").stat().st_size > 12 * size


def test_a_truncated_shard_is_named_and_nothing_is_written(
    tmp_path: Path, ranks: Path, strategy: Path
):
    shard = ranks / "rank_1" / "run-3.ckpt"
    shard.write_bytes(shard.read_bytes()[:-20])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidCheckpointError, match=r"rank_1/run-3\.ckpt is truncated"):
        merge_checkpoint(ranks, tmp_path / "m.ckpt", strategy=strategy)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["merge", "split"])
def test_a_byte_that_flipped_since_the_sum_was_taken_is_noticed(
    tmp_path: Path, ranks: Path, whole: Path, strategy: Path, what: str
):
    path = ranks / "rank_1" / "run-3.ckpt" if what == "merge" else whole
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    work, source = (merge_checkpoint, ranks) if what == "merge" else (split_checkpoint, whole)
    with pytest.raises(InvalidCheckpointError, match=f"{path.name} is not what was written"):
        work(source, tmp_path / "out.ckpt", strategy=strategy)
    assert not (tmp_path / "out.ckpt").exists()


def test_replicas_are_compared_on_demand(tmp_path: Path, ranks: Path, strategy: Path):
    shard = ranks / "rank_1" / "run-3.ckpt"
    shares = {"w": TENSORS["w"][4:], "b": TENSORS["b"][4:], "step": np.array(4, np.int32)}
    shard.unlink()
    shard.with_name("run-3.ckpt.sha256").unlink()
    write(shard, shares)
    merge_checkpoint(ranks, tmp_path / "m.ckpt", strategy=strategy)
    assert read(tmp_path / "m.ckpt")["step"][1] == TENSORS["step"].tobytes()
    with pytest.raises(InvalidCheckpointError, match=r"step of rank 1 \(.*run-3\.ckpt\) differs"):
        merge_checkpoint(ranks, tmp_path / "n.ckpt", strategy=strategy, check_replicas=True)
    assert not (tmp_path / "n.ckpt").exists()


def test_what_is_there_is_not_replaced(tmp_path: Path, ranks: Path, whole: Path, strategy: Path):
    (tmp_path / "there.ckpt").write_bytes(b"mine")
    (tmp_path / "sum.ckpt.sha256").write_bytes(b"mine")
    for name in ("there.ckpt", "sum.ckpt"):
        with pytest.raises(InvalidCheckpointError, match="is there already"):
            merge_checkpoint(ranks, tmp_path / name, strategy=strategy)
    with pytest.raises(InvalidCheckpointError, match="is there already"):
        split_checkpoint(whole, ranks, strategy=strategy)
    (tmp_path / "empty").mkdir()
    split_checkpoint(whole, tmp_path / "empty", strategy=strategy)
    assert (tmp_path / "there.ckpt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("source", "out", "options", "message"),
    [
        ("ranks", "m.npz", {}, "neither a .ckpt nor a .safetensors file"),
        ("ranks", ".m.ckpt", {}, "begin with a dot"),
        ("ranks", "/", {}, "begin with a dot"),
        ("ranks", "m.ckpt", {"strategy": "."}, "would lie between the strategy files"),
        ("ranks", "m.ckpt", {"strategy": "whole.ckpt"}, "whole.ckpt is truncated or no strategy"),
        ("whole.ckpt", "m.ckpt", {}, "whole.ckpt cannot be read"),
        ("no", "m.ckpt", {}, "no cannot be read"),
        ("whole.ckpt", "o", {"strategy": None}, "nothing to do without a strategy"),
        ("whole.ckpt", "o", {"prefix": "../x"}, "cannot be called '../xN.ckpt'"),
        ("whole.ckpt", "o", {"prefix": "."}, "cannot be called '.N.ckpt'"),
        ("whole.ckpt", "o", {"format": "npz"}, "one of the formats ckpt, safetensors"),
        ("ranks", "o", {"prefix": "c"}, "has the files of 2 ranks; pass the strategy"),
        ("no", "o", {"prefix": "c"}, "no is not there"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path,
    whole: Path,
    ranks: Path,
    strategy: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    out: str,
    options: dict[str, Any],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    work = merge_checkpoint if "." in out or out == "/" else split_checkpoint
    with pytest.raises(InvalidCheckpointError) as caught:
        work(source, out, **{"strategy": strategy} | options)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_room_is_looked_for_first(
    tmp_path: Path, ranks: Path, strategy: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(resharding.shutil, "disk_usage", lambda _: usage)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointWriteError, match=r"has 0\.00 GB free and .*merged.ckpt takes"):
        merge_checkpoint(ranks, tmp_path / "deep" / "merged.ckpt", strategy=strategy)
    assert sorted(tmp_path.rglob("*")) == before


CALLS = ("mkdir", "open", "rename", "fsync", "posix_fadvise")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("what", ["merge", "split"])
def test_a_disk_that_fails_at_any_step_leaves_all_or_nothing(
    tmp_path: Path, ranks: Path, whole: Path, strategy: Path, what: str, code: int
):
    place = tmp_path / "new"
    place.mkdir()
    failures = 0
    for step in range(1, 200):
        out = place / f"{step}.ckpt"
        with pytest.MonkeyPatch.context() as patch:
            count = 0

            def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count == step:  # noqa: B023  # it is called in this turn of the loop
                        raise OSError(code, os.strerror(code))
                    return original(*args, **kwargs)

                return call

            for name in CALLS:
                patch.setattr(os, name, wrap(getattr(os, name)))
            try:
                if what == "merge":
                    merge_checkpoint(ranks, out, strategy=strategy)
                else:
                    split_checkpoint(whole, out, strategy=strategy)
            except CheckpointWriteError as exc:
                assert os.strerror(code) in str(exc)  # noqa: PT017
                failures += 1
        if count < step:
            break
        if what == "merge":
            assert not out.exists() or read(out) == read(whole)
            assert out.exists() == out.with_name(f"{out.name}.sha256").exists()
        else:
            assert not out.exists() or len(list(out.rglob("*.ckpt"))) == 2
    assert failures > 8
    # A directory that could not even be locked was left to the next writer, which has been.
    assert not hidden(place)


def test_nothing_can_be_written_into_a_file(tmp_path: Path, ranks: Path, strategy: Path):
    (tmp_path / "file").touch()
    with pytest.raises((CheckpointWriteError, InvalidCheckpointError), match="file"):
        merge_checkpoint(ranks, tmp_path / "file" / "m.ckpt", strategy=strategy)
