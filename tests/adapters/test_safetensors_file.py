from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs, write_safetensors
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import DTYPES


def specs_of(tensors: dict[str, HostArray]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype.name) for name, array in tensors.items()}


def every_dtype() -> dict[str, HostArray]:
    rng = np.random.default_rng(5)
    return {f"a.{d}": (100 * rng.standard_normal((3, 5))).astype(d) for d in DTYPES}


def digest(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


@given(st.permutations(list(DTYPES)))
def test_the_library_reads_what_we_wrote_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    path = tmp_path_factory.mktemp("order") / "m.safetensors"
    tensors = every_dtype()
    names = [f"a.{dtype}" for dtype in order]
    entry = write_safetensors(path, specs_of(tensors), [(name, tensors[name]) for name in names])
    assert entry == digest(path)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


def test_the_library_reads_slices_of_what_we_wrote(tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.safetensors", every_dtype()
    write_safetensors(path, specs_of(tensors), tensors.items())
    with safe_open(path, framework="numpy") as opened:
        for name, array in tensors.items():
            part = opened.get_slice(name)[1:3, 2:]
            assert part.tobytes() == array[1:3, 2:].tobytes()


def test_the_library_would_have_laid_out_the_same_file(tmp_path: Path) -> None:
    # One dtype of each width: among dtypes of one width the library's order is its own.
    tensors = {f"a.{d}": every_dtype()[f"a.{d}"] for d in ("bfloat16", "bool", "float64", "int32")}
    write_safetensors(tmp_path / "ours.safetensors", specs_of(tensors), tensors.items())
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = ((tmp_path / f"{who}.safetensors").read_bytes() for who in ("ours", "theirs"))
    assert ours == theirs


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (1,), (7,)])
def test_scalars_empty_and_odd_tensors_are_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"t": np.ones(shape, np.int8), "u": np.ones(shape, np.float64)}
    write_safetensors(tmp_path / "m.safetensors", specs_of(tensors), tensors.items())
    read = load_file(tmp_path / "m.safetensors")
    assert {name: (a.shape, a.dtype) for name, a in read.items()} == {
        name: (a.shape, a.dtype) for name, a in tensors.items()
    }


def test_a_file_of_no_tensors_is_one(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {}, [])
    assert load_file(tmp_path / "m.safetensors") == {}
    assert read_specs(tmp_path / "m.safetensors") == {}


@pytest.mark.parametrize("name", ["", "权重", 'quoted "x" \\ \n', "a/b"])
def test_any_text_names_a_tensor_and_the_data_begins_at_a_multiple_of_8(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {name: TensorSpec((1,), "float32")}, [(name, np.ones(1, np.float32))])
    assert list(load_file(path)) == [name]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("name", ["__metadata__", "half a pair \ud83d"])
def test_a_name_that_the_format_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.safetensors"
    values = [(name, np.ones(1, np.float32))]
    with pytest.raises(InvalidCheckpointError, match=r"m\.safetensors: .*(name|called)"):
        write_safetensors(path, {name: TensorSpec((1,), "float32")}, values)
    assert not path.exists()


@pytest.mark.parametrize("backwards", [False, True])
def test_memory_holds_one_tensor_and_not_the_file(tmp_path: Path, backwards: bool) -> None:
    count, size = 12, 1_000_000
    names = sorted((f"t{number:02}" for number in range(count)), reverse=backwards)

    def values() -> Iterator[tuple[str, HostArray]]:
        for name in names:
            yield name, np.full(size, int(name[1:]), np.float32)

    specs = {name: TensorSpec((size,), "bfloat16") for name in names}
    path = tmp_path / "m.safetensors"
    tracemalloc.start()
    entry = write_safetensors(path, specs, values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert entry.size > 2 * count * size
    assert peak < 20_000_000  # two values (one is made while one is held), their chunk, a buffer
    files = TensorFiles(tmp_path)
    files.add(path, read_specs(path))
    for name in names:
        assert float(files.read(name, (slice(size - 1, size),))[0]) == int(name[1:])


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    with pytest.raises(CheckpointWriteError, match="File exists; move what is there away"):
        write_safetensors(tmp_path / "m.safetensors", {}, [])
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointWriteError, match=r"nowhere/m\.safetensors: No such file"):
        write_safetensors(tmp_path / "nowhere" / "m.safetensors", {}, [])


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CheckpointWriteError, match=r"m\.safetensors: Input/output error; see"):
        write_safetensors(tmp_path / "m.safetensors", {}, [])
    assert list(tmp_path.iterdir()) == []
