"""What is read of a checkpoint when a slice of it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_storage import PassingBlobs
from safetensors.numpy import save_file

from glm3sdk.adapters.storage import tensor_ranges
from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.tensor_ranges import fetch_slice, requests, runs
from glm3sdk.errors import BlobUnavailableError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import StoredCheckpoint, TensorSpec
from glm3sdk.testing import MemoryBlobStore

MIB = 1024 * 1024


# --- Which bytes -----------------------------------------------------------------------------


@st.composite
def slices(draw: st.DrawFn) -> tuple[HostArray, tuple[tuple[int, int], ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    dtype = draw(st.sampled_from([np.float32, np.uint8, ml_dtypes.bfloat16, np.int64]))
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ranges = []
    for size in shape:
        start = draw(st.integers(0, size))
        ranges.append((start, draw(st.integers(start, size))))
    return array, tuple(ranges)


@given(slices(), st.integers(0, 40), st.integers(1, 40))
def test_a_slice_is_what_numpy_gives_however_it_is_fetched(
    case: tuple[HostArray, tuple[tuple[int, int], ...]], gap: int, most: int
) -> None:
    array, ranges = case
    content = array.tobytes()
    fetched = np.zeros(len(content), int)

    def fetch(start: int, stop: int) -> bytes:
        assert 0 < stop - start <= most
        fetched[start:stop] += 1
        return content[start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_ranges, "REQUEST_BYTES", most)
        spec = TensorSpec(array.shape, array.dtype.name)
        found = fetch_slice(spec, ranges, fetch, gap=gap)
    expected = array[tuple(slice(start, stop) for start, stop in ranges)]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()
    assert fetched.max(initial=0) <= 1
    if gap == 0:
        assert fetched.sum() == expected.nbytes


def test_rows_far_apart_are_fetched_each_and_near_ones_together() -> None:
    def of(columns: int, *, gap: int = tensor_ranges.GAP_BYTES) -> list[tuple[int, int]]:
        return list(requests(runs((4, columns), ((0, 4), (0, columns // 2)), 2), gap=gap))

    near, far = 1000, 400_000
    assert of(near) == [(0, 3 * 2 * near + near)]
    assert of(far) == [(2 * far * row, 2 * far * row + far) for row in range(4)]
    assert of(near, gap=near - 1) == [(2 * near * row, 2 * near * row + near) for row in range(4)]


def test_a_failure_ends_the_other_requests() -> None:
    asked: list[int] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(start)
        raise BlobUnavailableError("gone")

    spec = TensorSpec((1000, 8 * MIB), "uint8")
    with pytest.raises(BlobUnavailableError, match="gone"):
        fetch_slice(spec, ((0, 1000), (0, 1)), fetch)
    assert len(asked) <= tensor_ranges.THREADS


# --- On a blob store -------------------------------------------------------------------------

# Of a tensor-parallel pair, each rank has half the rows of the first two and half the columns of
# the others; the last one's rows are long, as in a model of 6 billion parameters they are not.
SHAPES = {
    "query_key_value.weight": (512, 256),
    "query_key_value.bias": (512,),
    "dense.weight": (256, 256),
    "wide.weight": (4, 1024 * 1024),
}


def half(name: str, rank: int) -> tuple[slice, ...]:
    rows, *columns = SHAPES[name]
    if name.startswith("query"):
        return (slice(rank * rows // 2, (rank + 1) * rows // 2),)
    return (slice(None), slice(rank * columns[0] // 2, (rank + 1) * columns[0] // 2))


@pytest.fixture(scope="module")
def values() -> Mapping[str, HostArray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s).astype(np.float16) for name, s in SHAPES.items()}


@pytest.fixture(scope="module")
def stored(
    values: Mapping[str, HostArray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[PassingBlobs, Callable[[], StoredCheckpoint]]:
    blobs = PassingBlobs(MemoryBlobStore(), lambda _: None)
    store = BlobCheckpointStore(blobs, staging=tmp_path_factory.mktemp("staging"))
    writer = store.create("memory://b/a")
    specs = {name: TensorSpec(array.shape, "float16") for name, array in values.items()}
    writer.add_tensors("model.safetensors", specs, values.items())
    writer.commit()
    return blobs, lambda: store.open("memory://b/a")


def test_opening_reads_the_manifest_and_one_piece_of_each_file(
    stored: tuple[PassingBlobs, Callable[[], StoredCheckpoint]],
) -> None:
    blobs, opened = stored
    blobs.reads.clear()
    opened()
    (manifest, _, size), (weights, start, stop) = blobs.reads
    assert manifest.endswith("/manifest.json")
    assert size < 1000
    assert weights.endswith("/model.safetensors")
    assert (start, stop) == (0, 64 * 1024)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_rows_alone_and_its_columns_alone_where_rows_are_long(
    values: Mapping[str, HostArray],
    stored: tuple[PassingBlobs, Callable[[], StoredCheckpoint]],
    rank: int,
) -> None:
    blobs, opened = stored
    checkpoint = opened()
    read: dict[str, int] = {}
    times: dict[str, int] = {}
    for name, array in values.items():
        blobs.reads.clear()
        found = checkpoint.read(name, half(name, rank))
        assert found.tobytes() == array[half(name, rank)].tobytes()
        read[name] = sum(stop - start for _, start, stop in blobs.reads)
        times[name] = len(blobs.reads)
    share = {name: array.nbytes // 2 for name, array in values.items()}
    for name in ("query_key_value.weight", "query_key_value.bias", "wide.weight"):
        assert read[name] == share[name], name
    # Half of each short row: one request for all of them is quicker than one for each.
    assert times == {**dict.fromkeys(SHAPES, 1), "wide.weight": 4}
    assert share["dense.weight"] < read["dense.weight"] <= values["dense.weight"].nbytes


# --- On a local disk -------------------------------------------------------------------------

_CHILD = """
import json, sys
from pathlib import Path
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs

def resident():
    # Pages of the file that were mapped count as well, whoever else has them.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

def figures(action):
    Path("/proc/self/clear_refs").write_text("5")  # begin to count the peak anew
    before, bytes_before = resident(), io()
    found = action()
    return {"resident": resident() - before, "calls": io() - bytes_before, "size": found}

def io():
    return int(Path("/proc/self/io").read_text().split()[1])

file = Path(sys.argv[1])
files = TensorFiles(file.parent)
whole = slice(None)
print(json.dumps({
    "open": figures(lambda: files.add(file, read_specs(file))),
    "rows": figures(lambda: files.read("weight", (slice(0, 512),)).nbytes),
    "columns": figures(lambda: files.read("weight", (whole, slice(0, 16384))).nbytes),
}))
"""


def test_a_local_file_is_opened_by_its_header_and_read_by_slice(tmp_path: Path) -> None:
    """A sparse file of 512 MiB: 4096 rows of 65536 halves; what is touched becomes resident."""
    file = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros((1, 1), np.float16)}, file)
    header = file.read_bytes()[8:-2].decode().rstrip()
    shape, size = [4096, 65536], 4096 * 65536 * 2
    content = json.loads(header)
    content["weight"] |= {"shape": shape, "data_offsets": [0, size]}
    data = json.dumps(content).encode()
    data += b" " * (-len(data) % 8)
    with file.open("wb") as opened:
        opened.write(len(data).to_bytes(8, "little") + data)
        opened.truncate(8 + len(data) + size)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(file)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["open"]["resident"] < 4 * MIB
    assert found["open"]["calls"] < MIB
    # Rows: the array, and the pages that it was copied from. Of columns the kernel also maps what
    # lies between them, as far as it reads ahead.
    for part, share, most in (("rows", size // 8, size // 8), ("columns", size // 4, size)):
        assert found[part]["size"] == share
        assert found[part]["resident"] < share + most + 4 * MIB, part
        assert found[part]["calls"] < MIB, part
