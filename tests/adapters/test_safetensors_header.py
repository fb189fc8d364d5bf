"""Our reading of safetensors headers; the library says what is one and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from glm3sdk.adapters.storage.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    PlacedTensor,
    header_length,
    parse_header,
)
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.tensor_values import DTYPES

VALUES = {
    "a": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.arange(4, dtype=np.float32),
}


def parse(content: bytes) -> dict[str, PlacedTensor]:
    length = header_length(content[:LENGTH_BYTES], len(content), "the file")
    return parse_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content), "the file")


def test_every_dtype_is_placed_where_the_library_wrote_it() -> None:
    plain = {n: np.arange(6).reshape(2, 3).astype(n) for n in DTYPES if n != "bfloat16"}
    values = {**plain, "scalar": np.array(7, np.int64), "nothing": np.empty((0, 4), np.float32)}
    content = save(values, metadata={"format": "pt"})
    placed = parse(content)
    assert placed.keys() == values.keys()
    for name, array in values.items():
        found = placed[name]
        assert (found.spec.shape, found.spec.dtype) == (array.shape, array.dtype.name)
        assert content[found.start : found.stop] == array.tobytes()


def test_bfloat16_and_what_is_not_known_keep_the_formats_names() -> None:
    header = {
        "brain": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "tiny": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [4, 7]},
    }
    placed = parse(file_of(header, bytes(7)))
    assert placed["brain"].spec.dtype == np.dtype(ml_dtypes.bfloat16).name
    assert placed["tiny"].spec.dtype == "f8_e4m3"


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    """A file of one tensor of 8 bytes, with something about it changed."""
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {**entry(data_offsets=first), "u": entry(data_offsets=second)["t"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00\x00",
        (100).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        file_of(b""),
        file_of(b"\xff\xfe"),
        file_of(b"{"),
        file_of(b"[" * 5000),
        file_of(b"[]"),
        file_of(b"null"),
        file_of({"t": []}),
        file_of({"t": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        file_of(entry(dtype=1), bytes(8)),
        file_of(entry(shape=[-2]), bytes(8)),
        file_of(entry(shape=[2.0]), bytes(8)),
        file_of(entry(shape=["2"]), bytes(8)),
        file_of(entry(shape=2), bytes(8)),
        file_of(entry(shape=[3]), bytes(8)),
        file_of(entry(shape=[2**62, 2**62]), bytes(8)),
        file_of(entry(data_offsets=[0, 8, 9]), bytes(8)),
        file_of(entry(data_offsets=[8, 0]), bytes(8)),
        file_of(entry(data_offsets=[-8, 0]), bytes(8)),
        file_of(entry(), bytes(7)),
        file_of(entry(), bytes(9)),
        file_of(entry(data_offsets=[1, 9]), bytes(9)),
        file_of(two([0, 8], [4, 12]), bytes(12)),
        file_of(two([0, 8], [0, 8]), bytes(8)),
        file_of(two([0, 8], [9, 17]), bytes(17)),
    ],
)
def test_what_the_library_refuses_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SafetensorError), safe_open(tmp_path / "file", framework="numpy"):
        pass
    with pytest.raises(InvalidCheckpointError, match="the file is truncated or not safetensors"):
        parse(content)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:20]])
def test_a_file_that_was_cut_or_lengthened_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidCheckpointError, match="truncated or not safetensors"):
        parse(change(save(VALUES)))


def test_a_name_that_is_there_twice_is_refused() -> None:
    one = json.dumps(entry())[1:-1]
    with pytest.raises(InvalidCheckpointError, match="a name is there twice"):
        parse(file_of(f"{{{one}, {one}}}".encode(), bytes(8)))


def test_a_header_of_any_length_is_not_fetched() -> None:
    start = (MAX_HEADER_BYTES + 1).to_bytes(LENGTH_BYTES, "little")
    with pytest.raises(InvalidCheckpointError, match="more than the format allows"):
        header_length(start, 10**12, "the file")


def test_a_tensor_without_bytes_may_lie_anywhere_between() -> None:
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    assert parse(file_of(header, bytes(8))).keys() == {"a", "b", "c"}
