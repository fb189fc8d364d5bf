from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glm3sdk.adapters.storage import protobuf_wire as wire
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import DTYPES

Tensors = dict[str, HostArray]


def specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec(array.shape, array.dtype.name) for name, array in tensors.items()}


def every_dtype() -> Tensors:
    rng = np.random.default_rng(5)
    return {f"a.{d}": (100 * rng.standard_normal((3, 5))).astype(d) for d in DTYPES}


def write(path: Path, tensors: Tensors, **options: int) -> FileEntry:
    return write_mindspore_ckpt(path, specs_of(tensors), tensors.items(), **options)


def read(path: Path) -> Tensors:
    file = MindSporeCkptFile(path)
    return {name: file.read(name) for name in file.tensors}


def value(name: str, dims: list[int], kind: str, content: bytes, field: int = 2) -> bytes:
    tensor = (
        wire.integer_fields(1, dims)
        + wire.bytes_field(2, kind.encode())
        + wire.bytes_field(3, content)
    )
    return wire.bytes_field(1, wire.bytes_field(1, name.encode()) + wire.bytes_field(field, tensor))


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from([dtype for dtype in DTYPES if dtype != "bfloat16"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    min_size=1,
    max_size=4,
).filter(lambda tensors: all(array.shape != (0,) for array in tensors.values()))


@given(TENSORS, st.integers(8, 64))
def test_what_was_written_is_read_however_it_is_split(
    tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, piece_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.ckpt"
    entry = write(path, tensors, piece_bytes=piece_bytes)
    data = path.read_bytes()
    assert entry == FileEntry(len(data), hashlib.sha256(data).hexdigest())
    assert_same(read(path), tensors)


@given(st.data())
def test_any_slice_is_what_numpy_would_give_and_only_its_bytes_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("slice") / "m.ckpt"
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    write(path, {"other": array, "t": array}, piece_bytes=100)
    bounds = st.none() | st.integers(-7, 7)
    parts = st.lists(st.builds(slice, bounds, bounds), max_size=3)
    index = tuple(data.draw(parts))
    file, preadv, count = MindSporeCkptFile(path), os.preadv, 0

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal count
        found = preadv(descriptor, buffers, offset)
        count += found
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.preadv", counted)
        found = file.read("t", index)
    np.testing.assert_array_equal(found, array[index])
    assert count == found.nbytes


def test_rows_that_lie_together_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((1000, 10), np.float16)
    write(tmp_path / "m.ckpt", {"t": array})
    file, preadv, calls = MindSporeCkptFile(tmp_path / "m.ckpt"), os.preadv, []

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr("os.preadv", counted)
    assert file.read("t", (slice(100, 600),)).shape == (500, 10)
    assert len(calls) == 1


def test_opening_reads_names_and_shapes_and_not_the_content(tmp_path: Path) -> None:
    tensors = {f"t{number}": np.zeros(250_000, np.float32) for number in range(8)}
    write(tmp_path / "m.ckpt", tensors, piece_bytes=400_000)
    tracemalloc.start()
    file = MindSporeCkptFile(tmp_path / "m.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(file.tensors) == list(tensors)
    assert peak < 200_000


def test_memory_holds_one_tensor_and_not_the_file(tmp_path: Path) -> None:
    count, size = 12, 1_000_000

    def values() -> Iterator[tuple[str, HostArray]]:
        for number in range(count):
            yield f"t{number}", np.full(size, number, np.float32)

    specs = {f"t{number}": TensorSpec((size,), "bfloat16") for number in range(count)}
    tracemalloc.start()
    entry = write_mindspore_ckpt(tmp_path / "m.ckpt", specs, values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert entry.size > 2 * count * size
    assert peak < 20_000_000  # two values (one is made while one is held), their chunk, a buffer
    assert float(MindSporeCkptFile(tmp_path / "m.ckpt").read("t7")[-1]) == 7


def test_values_in_the_same_order_make_the_same_bytes(tmp_path: Path) -> None:
    tensors = every_dtype()
    specs = dict(reversed(specs_of(tensors).items()))
    write(tmp_path / "a.ckpt", tensors)
    write_mindspore_ckpt(tmp_path / "b.ckpt", specs, tensors.items())
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


SAVED = every_dtype() | {"number": np.array(2.5, np.float32), "empty": np.empty((0, 2), np.int8)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "m.ckpt"
    write(path, SAVED, piece_bytes=16)
    return path.read_bytes()


@given(position=st.integers(0, 5000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_invalid_checkpoint_or_another_value(
    saved: bytes, tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    data = bytearray(saved)
    data[position % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "m.ckpt"
    path.write_bytes(data)
    try:
        file = MindSporeCkptFile(path)
    except InvalidCheckpointError:
        return
    for name, spec in file.tensors.items():
        if spec.dtype in DTYPES:
            assert file.read(name).shape == spec.shape


@given(st.integers(0, 5000))
def test_a_truncated_file_is_an_invalid_checkpoint_unless_whole_tensors_are_gone(
    saved: bytes, tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.ckpt"
    path.write_bytes(saved[: cut % len(saved)])
    try:
        found = read(path)
    except InvalidCheckpointError:
        return
    assert_same(found, {name: SAVED[name] for name in list(SAVED)[: len(found)]})


FOUR = b"\0" * 4
WHOLE = value("a", [1], "Float32", FOUR)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"PK\3\4 a zip archive, for instance", "truncated or no .ckpt file"),
        (wire.bytes_field(2, b"unknown"), "has no tensors"),
        (WHOLE[:-1], "truncated"),
        (WHOLE + WHOLE, "8 bytes of tensor a.*are 4.*twice"),
        (WHOLE + value("b", [1], "Float32", FOUR) + WHOLE, "has tensor a twice"),
        (WHOLE + value("a", [1], "Int32", FOUR), "has tensor a twice"),
        (value("a", [2], "Float32", FOUR), r"4 bytes of tensor a, and \[2\] of float32 are 8"),
        (value("a", [2], "Float32", FOUR) + value("b", [], "Int8", b"1"), "4 bytes of tensor a"),
        (value("a", [-1], "Float32", FOUR), r"the shape \[-1\]"),
        (value("a", [1] * 33, "Float32", FOUR), "the shape"),
        (value("a", [1] * 400, "Float32", FOUR), "the shape"),
        (value("a", [0, 1 << 62], "Float32", b""), "the shape"),
        (value("a", [1 << 62, 1 << 62], "Float32", FOUR), "the shape"),
        (value("a" * 4097, [1], "Float32", FOUR), "longer than 4096 bytes"),
        (wire.bytes_field(1, wire.bytes_field(1, b"a")), "without a name or a tensor"),
        (wire.bytes_field(1, wire.bytes_field(2, b"")), "type or the content|without a name"),
        (
            wire.bytes_field(1, wire.bytes_field(1, b"a") + wire.bytes_field(2, b"") * 2),
            "two tensors",
        ),
        (
            wire.bytes_field(1, wire.bytes_field(1, b"a") + wire.bytes_field(2, b"")),
            "lacks the type or the content",
        ),
        (wire.bytes_field(1, wire.bytes_field(1, b"\xff") + WHOLE[5:]), "not UTF-8"),
        (b"\x0a" + b"\x80" * 11 + WHOLE, "more than 64 bits"),
        (b"\xd9\x5e\x3a\x7fH\0\0\0", "is encrypted; load it in MindSpore with dec_key"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "m.ckpt").write_bytes(data)
    with pytest.raises(InvalidCheckpointError, match=rf"m\.ckpt .*({reason})"):
        MindSporeCkptFile(tmp_path / "m.ckpt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"m\.ckpt cannot be read: No such file"):
        MindSporeCkptFile(tmp_path / "m.ckpt")
    with pytest.raises(InvalidCheckpointError, match="cannot be read: Is a directory"):
        MindSporeCkptFile(tmp_path)


def test_what_numpy_has_no_type_for_is_listed_and_not_read(tmp_path: Path) -> None:
    table = wire.bytes_field(1, b"table") + wire.bytes_field(3, b"")
    (tmp_path / "m.ckpt").write_bytes(
        value("four_bits", [8], "Int4", FOUR) + WHOLE + wire.bytes_field(1, table) * 2
    )
    file = MindSporeCkptFile(tmp_path / "m.ckpt")
    assert {name: (s.shape, s.dtype) for name, s in file.tensors.items()} == {
        "four_bits": ((8,), "int4"),
        "a": ((1,), "float32"),
        "table": ((), "map"),
    }
    with pytest.raises(InvalidCheckpointError, match="four_bits is int4, which is not read"):
        file.read("four_bits")
    assert file.read("a").tolist() == [0]


def test_a_scalar_of_an_older_mindspore_is_one(tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(value("step", [0], "Int32", b"\7\0\0\0"))
    file = MindSporeCkptFile(tmp_path / "m.ckpt")
    assert file.tensors["step"] == TensorSpec((), "int32")
    assert int(file.read("step")) == 7


@pytest.mark.parametrize("change", ["replaced", "shortened", "removed"])
def test_a_file_that_changed_since_it_was_opened_is_not_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.ckpt"
    write(path, {"a": np.ones(4, np.float32)})
    file = MindSporeCkptFile(path)
    if change == "shortened":
        os.truncate(path, 10)
    else:
        path.unlink()
    if change == "replaced":
        write(path, {"a": np.zeros(4, np.float32)})
    with pytest.raises(InvalidCheckpointError, match=r"m\.ckpt (was changed|cannot be read)"):
        file.read("a")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "no tensors"),
        ({"a": np.empty(0, np.int8)}, r"shape \[0\], which MindSpore takes for a scalar"),
        ({"": np.ones(1)}, "name of 0 bytes"),
        ({"a" * 5000: np.ones(1)}, "name of 5000 bytes"),
        ({"half a pair \ud83d": np.ones(1)}, "not text"),
    ],
)
def test_what_the_format_cannot_give_back_is_not_written(
    tmp_path: Path, tensors: Tensors, reason: str
) -> None:
    with pytest.raises(InvalidCheckpointError, match=rf"m\.ckpt: .*{reason}"):
        write(tmp_path / "m.ckpt", tensors)
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit_leave_no_file(tmp_path: Path) -> None:
    specs = {"a": TensorSpec((1,), "float32"), "b": TensorSpec((1,), "float32")}
    with pytest.raises(InvalidCheckpointError, match="no value was given for tensor b"):
        write_mindspore_ckpt(tmp_path / "m.ckpt", specs, [("a", np.ones(1, np.float32))])
    large = {"a": TensorSpec((1,), "float16")}
    with pytest.raises(InvalidCheckpointError, match="float16 cannot hold"):
        write_mindspore_ckpt(tmp_path / "m.ckpt", large, [("a", np.full(1, 1e6, np.float32))])
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(b"mine")
    with pytest.raises(CheckpointWriteError, match="File exists; move what is there away"):
        write(tmp_path / "m.ckpt", {"a": np.ones(1)})
    assert (tmp_path / "m.ckpt").read_bytes() == b"mine"


@pytest.mark.parametrize("limit", [10, 9_000_000])
def test_a_disk_that_fills_up_is_said_and_no_file_is_left(tmp_path: Path, limit: int):
    # In a process of its own: the limit holds for every file that it writes.
    script = f"""
import pathlib, resource
import numpy as np
from glm3sdk.adapters.storage.mindspore_ckpt import write_mindspore_ckpt
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.ports.checkpoint_store import TensorSpec
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
tensors = {{"a": np.ones(3, np.float32), "b": np.ones(3_000_000, np.float32)}}
specs = {{name: TensorSpec(a.shape, "float32") for name, a in tensors.items()}}
try:
    write_mindspore_ckpt(pathlib.Path({str(tmp_path / "m.ckpt")!r}), specs, tensors.items())
except CheckpointWriteError as exc:
    print(exc)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "m.ckpt: File too large; raise the limit of a file's size" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "remedy"), [(5, "Input/output error; see"), (28, "No space left.*; free some space")]
)
def test_a_failed_write_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CheckpointWriteError, match=rf"m\.ckpt: {remedy}"):
        write(tmp_path / "m.ckpt", {"a": np.ones(1)})
    assert list(tmp_path.iterdir()) == []
