from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from sharded import Arrays, numbered

from glm3sdk.adapters.storage import tensor_file
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.rank_files import find_rank_files, new_directory, new_file
from glm3sdk.adapters.storage.tensor_file import open_tensor_file, write_tensor_file
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError, UnsafeCheckpointError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_come_in_the_order_of_the_ranks(tmp_path: Path):
    files = [tmp_path / f"rank_{rank}" / f"c{rank}.ckpt" for rank in range(11)]
    touch(*files)
    # What lies about beside them: other files, sums, hidden ones, MindSpore's graphs.
    touch(tmp_path / "rank_3" / "c3.ckpt.sha256", tmp_path / "rank_3" / "graph.meta")
    touch(tmp_path / "rank_4" / ".c.ckpt", tmp_path / "rank_table.json", tmp_path / "rank_x")
    assert find_rank_files(tmp_path) == tuple(files)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ([], "holds no rank_0, rank_1"),
        (["rank_01/a.ckpt"], "holds no rank_0, rank_1"),
        (["rank_0/a.ckpt", "rank_2/a.ckpt"], "has rank_2 and lacks rank_1"),
        (["rank_1/a.ckpt"], "has rank_1 and lacks rank_0"),
        (["rank_0/a.ckpt", "rank_1/a.txt"], "rank 1 has 0 checkpoint files in .*rank_1; leave"),
        (
            ["rank_0/a.ckpt", "rank_0/b.safetensors"],
            r"rank 0 has 2 checkpoint files in .*rank_0: a\.ckpt, b\.safetensors; leave",
        ),
        (
            [f"rank_0/{n}.ckpt" for n in range(9)],
            r"has 9 .*: 0\.ckpt, 1\.ckpt, 2\.ckpt, 3\.ckpt, 4\.ckpt and 4 more",
        ),
        (["rank_0"], "rank_0 is not a directory"),
    ],
)
def test_what_is_not_one_file_a_rank_is_named(tmp_path: Path, there: list[str], message: str):
    touch(*(tmp_path / name for name in there))
    with pytest.raises(InvalidCheckpointError, match=message):
        find_rank_files(tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InvalidCheckpointError, match=re.escape(str(tmp_path / "no"))):
        find_rank_files(tmp_path / "no")


@pytest.mark.parametrize("link", ["file", "directory"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, link: str):
    source, outside = tmp_path / "source", tmp_path / "outside"
    touch(source / "rank_0" / "a.ckpt", outside / "a.ckpt")
    if link == "file":
        (source / "rank_1").mkdir()
        (source / "rank_1" / "a.ckpt").symlink_to(outside / "a.ckpt")
    else:
        (source / "rank_1").symlink_to(outside)
    with pytest.raises(UnsafeCheckpointError, match=r"rank_1.* is a link to .*outside"):
        find_rank_files(source)


def test_a_link_within_the_directory_is_followed(tmp_path: Path):
    touch(tmp_path / "rank_0" / "a.ckpt")
    (tmp_path / "rank_1").mkdir()
    (tmp_path / "rank_1" / "a.ckpt").symlink_to(tmp_path / "rank_0" / "a.ckpt")
    assert len(find_rank_files(tmp_path)) == 2


def test_what_is_no_plain_file_is_refused(tmp_path: Path):
    (tmp_path / "rank_0").mkdir()
    os.mkfifo(tmp_path / "rank_0" / "a.ckpt")
    with pytest.raises(InvalidCheckpointError, match="is not a plain file"):
        find_rank_files(tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_written_file_has_its_sum_beside_it(tmp_path: Path, suffix: str):
    path, counted = tmp_path / f"a{suffix}", []
    arrays = {"b": numbered((3,), np.float16), "a": numbered((2, 2))}
    entry = write_tensor_file(path, Arrays(arrays), on_bytes=counted.append)
    reader = open_tensor_file(path)
    assert {name: reader.read(name).tobytes() for name in reader.tensors} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry == FileEntry(path.stat().st_size, sha256)
    assert (tmp_path / f"a{suffix}.sha256").read_text() == f"{sha256}  a{suffix}\n"
    assert sum(counted) == 6 + 16


def test_a_disk_that_gives_other_bytes_back_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def flipped(path: Path) -> FileEntry:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        return FileEntry(len(data), hashlib.sha256(data).hexdigest())

    monkeypatch.setattr(tensor_file, "digest_file", flipped)
    with pytest.raises(CheckpointWriteError, match="is not what was written"):
        write_tensor_file(
            tmp_path / "a.ckpt", Arrays({"a": numbered((2,))}), on_bytes=lambda _: None
        )
    assert not any(tmp_path.iterdir())


def test_another_kind_of_file_is_refused(tmp_path: Path):
    with pytest.raises(InvalidCheckpointError, match=r"neither a \.ckpt nor a \.safetensors"):
        open_tensor_file(tmp_path / "a.npz")


def test_what_came_there_in_the_meantime_is_not_replaced(tmp_path: Path):
    def mine_comes_first() -> None:
        with new_directory(tmp_path / "d"):
            touch(tmp_path / "d" / "mine")

    def mine_comes_first_as_a_file() -> None:
        with new_file(tmp_path / "f.ckpt") as path:
            touch(path, path.with_name("f.ckpt.sha256"), tmp_path / "f.ckpt")

    for write in (mine_comes_first, mine_comes_first_as_a_file):
        with pytest.raises(InvalidCheckpointError, match="is there already"):
            write()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "f.ckpt", "mine"]


def test_a_sum_that_a_killed_writer_left_without_its_file_is_in_nobody_s_way(tmp_path: Path):
    beside = tmp_path / "f.ckpt.sha256"
    beside.write_text(f"{'0' * 64}  f.ckpt\n")
    with new_file(tmp_path / "f.ckpt") as path:
        path.write_bytes(b"new")
        path.with_name(beside.name).write_text(f"{'1' * 64}  f.ckpt\n")
    assert (tmp_path / "f.ckpt").read_bytes() == b"new"
    assert beside.read_text() == f"{'1' * 64}  f.ckpt\n"


@pytest.mark.parametrize("text", ["mine", f"{'0' * 64}  other.ckpt\n", f"{'0' * 64}  f.ckpt\nmore"])
def test_anything_else_of_that_name_is_not_replaced(tmp_path: Path, text: str):
    beside = tmp_path / "f.ckpt.sha256"
    beside.write_text(text)
    refused = pytest.raises(InvalidCheckpointError, match=r"f\.ckpt\.sha256 is there already")
    with refused, new_file(tmp_path / "f.ckpt"):
        pass
    assert beside.read_text() == text
