"""Checkpoints that torch saved (`pytorch_model-*.bin`), read without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

from glm3sdk.adapters.storage.torch_archive import (
    Member,
    TorchArchive,
    check_crc,
    open_archive,
    read_into,
)
from glm3sdk.adapters.storage.torch_pickle import StoredTensor, read_tensors
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import index_ranges


class TorchBinFile:
    """A torch checkpoint of named tensors; a `CheckpointReader`.

    Opening reads the zip file's directory and the pickle, which cannot run anything. Reading
    a tensor reads its bytes; of a slice, those of the slice, as far as they lie in rows.
    No file handle stays open between reads.

    Raises:
        UnsafeCheckpointError: the pickle asks for anything but tensors; nothing was run.
        InvalidCheckpointError: no such file, truncated, or not a torch checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._archive: TorchArchive = open_archive(self.path)
        self._stored = read_tensors(self._archive.pickle, str(self.path))
        for name, tensor in self._stored.items():
            self._check(name, tensor)
        self._tensors = {
            name: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in self._stored.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it (steps of 1), in its stored dtype.

        A tensor that is all of its storage is compared with the checksum that torch wrote.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, or a file
                that was damaged or changed since it was opened.
        """
        if name not in self._stored:
            raise InvalidCheckpointError(f"{self.path}: no tensor {name!r} in this checkpoint")
        tensor = self._stored[name]
        ranges = index_ranges(name, tensor.shape, index)
        shape = tuple(stop - start for start, stop in ranges)
        dtype = numpy_dtype(tensor.dtype)
        if 0 in shape:
            return np.empty(shape, dtype)
        member = self._archive.storages[tensor.storage]
        begin = tensor.offset + sum(
            start * stride for (start, _), stride in zip(ranges, tensor.strides, strict=True)
        )
        # In the order of the file: the dimension with the longest steps first.
        order = sorted(range(len(shape)), key=lambda axis: -tensor.strides[axis])
        sizes = [shape[axis] for axis in order]
        strides = [tensor.strides[axis] * dtype.itemsize for axis in order]
        with self._archive.opened() as descriptor:
            place = member.offset + begin * dtype.itemsize
            values = self._read_rows(descriptor, place, sizes, strides, dtype)
        if values.nbytes == member.size:
            check_crc(self.path, f"tensor {name}", member, _bytes_of(values))
        return np.ascontiguousarray(values.transpose(np.argsort(order))).reshape(shape)

    def _read_rows(
        self,
        descriptor: int,
        place: int,
        sizes: list[int],
        strides: list[int],
        dtype: np.dtype[np.generic],
    ) -> HostArray:
        """Read elements that lie apart by falling strides (in bytes), into the same order."""
        outer, run = len(sizes), dtype.itemsize
        while outer and (strides[outer - 1] == run or sizes[outer - 1] == 1):
            outer -= 1
            run *= sizes[outer]
        if outer == len(sizes) and outer:  # no two elements lie side by side
            span = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + run
            around = np.empty(span, np.uint8)
            read_into(self.path, descriptor, around.data, place)
            view: HostArray = np.ndarray(sizes, dtype, around, strides=strides)
            return view.copy()
        values = np.empty(sizes, dtype)
        buffer, done = _bytes_of(values), 0
        for position in np.ndindex(*sizes[:outer]):
            row = sum(i * step for i, step in zip(position, strides, strict=False))
            read_into(self.path, descriptor, buffer[done : done + run], place + row)
            done += run
        return values

    def _check(self, name: str, tensor: StoredTensor) -> None:
        """Check that a tensor lies in its storage and the storage is what the pickle says."""
        member = self._archive.storages.get(tensor.storage)
        if member is None:
            raise self._misplaced(name, f"its storage {tensor.storage!r} is missing")
        self._check_size(name, tensor, member)
        count = math.prod(tensor.shape)
        if not count:
            return
        last = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        itemsize = numpy_dtype(tensor.dtype).itemsize
        if (last + 1) * itemsize > member.size:
            raise self._misplaced(name, "it reaches beyond the end of its storage")
        if count * itemsize > member.size:
            raise self._misplaced(name, "its elements overlap, as an expanded tensor's do")

    def _check_size(self, name: str, tensor: StoredTensor, member: Member) -> None:
        needed = tensor.storage_size * numpy_dtype(tensor.storage_dtype).itemsize
        if needed != member.size:
            raise self._misplaced(
                name, f"its storage has {member.size} bytes and the pickle says {needed}"
            )

    def _misplaced(self, name: str, what: str) -> InvalidCheckpointError:
        return InvalidCheckpointError(
            f"{self.path} is damaged: of tensor {name}, {what}; download it again"
        )


def _bytes_of(values: HostArray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data
