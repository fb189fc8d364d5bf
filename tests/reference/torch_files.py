"""Checkpoints as torch saves them, written without torch.

The layout is that of the golden files, which torch wrote; a test compares them.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str,
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    size: int | None = None,
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
) -> bytes:
    """The opcodes of a tensor in a storage; contiguous and all of it unless told otherwise."""
    contiguous = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    storage = (
        b"((" + text("storage") + b"ctorch\n" + STORAGES[dtype].encode() + b"\n" + text(key)
    ) + (text("cpu") + number(int(np.prod(shape)) if size is None else size) + b"tQ")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(contiguous if strides is None else strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def pickled(tensors: Mapping[str, bytes]) -> bytes:
    """A dictionary of names and the opcodes of their values."""
    return b"\x80\x02}(" + b"".join(text(name) + code for name, code in tensors.items()) + b"u."


def write_archive(
    path: Path, data: bytes, storages: Mapping[str, bytes], *, root: str = "archive"
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")


def write_torch(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Save tensors as `torch.save` does."""
    codes, storages = {}, {}
    for number_, (name, array) in enumerate(weights.items()):
        key = str(number_)
        codes[name] = tensor(key, array.shape, dtype=array.dtype.name)
        storages[key] = np.ascontiguousarray(array).tobytes()
    write_archive(path, pickled(codes), storages, root=path.stem)


def write_torch_shards(
    directory: Path, weights: Mapping[str, np.ndarray], placed: Mapping[str, str]
) -> None:
    """Save tensors into the shards that an index places them in, and the index."""
    for shard in sorted(set(placed.values())):
        chosen = {name: weights[name] for name, place in placed.items() if place == shard}
        write_torch(directory / shard, chosen)
    total = sum(weights[name].nbytes for name in placed)
    index = {"metadata": {"total_size": total}, "weight_map": dict(placed)}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
