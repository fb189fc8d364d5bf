"""Safetensors files: written a tensor at a time, read a slice at a time.

The format: the header's length as 8 bytes little-endian, the header as JSON, the tensors'
bytes one after another (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16", which safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.safetensors_header import CODES, METADATA, NAMES
from glm3sdk.adapters.storage.write_failure import closing, writing
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, host_array, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import (
    DTYPES,
    check_specs,
    checked_values,
    converted,
    index_ranges,
)

_CHUNK_BYTES = 8 * 1024 * 1024
_READ_BYTES = 1024 * 1024


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    values: Iterable[tuple[str, HostArray]],
    *,
    framework: str = "pt",
) -> FileEntry:
    """Write a new file whose bytes are on the disk when this returns.

    Memory: one value and 8 MiB. The sha256 is taken on the way where values come in the
    file's order (widest dtype first, then by name); else what is left is read again.

    Args:
        path: where there is no file yet.
        specs: every tensor's shape and dtype.
        values: the tensors, each once, in any order, converted to the spec's dtype.
        framework: what the file says it is for, "pt" or "ms".

    Returns:
        The file's length and sha256.

    Raises:
        InvalidCheckpointError: values do not fit specs; no file is left.
        CheckpointWriteError: no room or no permission; no file is left.
    """
    check_specs(path.name, specs, {})
    header, offsets = _layout(path.name, specs, framework)
    with writing(path):
        file = path.open("x+b")
    try:
        with closing(file):
            digest, hashed = hashlib.sha256(header), len(header)
            with writing(path):
                file.write(header)
            for name, value in checked_values(path.name, specs, values):
                offset = offsets[name]
                with writing(path):
                    file.seek(offset)
                for chunk in _chunks(path.name, name, value, specs[name].dtype):
                    with writing(path):
                        file.write(chunk)
                    if offset == hashed:
                        digest.update(chunk)
                        hashed += len(chunk)
                    offset += len(chunk)
            with writing(path):
                file.seek(hashed)
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                    hashed += len(data)
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return FileEntry(hashed, digest.hexdigest())


def _layout(
    file: str, specs: Mapping[str, TensorSpec], framework: str
) -> tuple[bytes, dict[str, int]]:
    """The file up to its data, and where in the file each tensor begins."""
    # Widest first: then each tensor's begin is a multiple of its item size.
    order = sorted(specs, key=lambda name: (-numpy_dtype(specs[name].dtype).itemsize, name))
    # Readers of other frameworks ask for a format before they open a file.
    header: dict[str, Any] = {METADATA: {"format": framework}}
    begin = 0
    for name in order:
        if name == METADATA:
            raise InvalidCheckpointError(f"{file}: no tensor can be called {name}; rename it")
        spec = specs[name]
        end = begin + math.prod(spec.shape) * numpy_dtype(spec.dtype).itemsize
        header[name] = {
            "dtype": CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as exc:
        raise InvalidCheckpointError(f"{file}: a tensor's name is not text: {exc}") from exc
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {name: start + header[name]["data_offsets"][0] for name in order}
    return len(text).to_bytes(8, "little") + text, offsets


def _chunks(file: str, name: str, value: HostArray, dtype: str) -> Iterator[memoryview]:
    flat = np.ascontiguousarray(value).reshape(-1)
    step = _CHUNK_BYTES // max(flat.itemsize, numpy_dtype(dtype).itemsize)
    for start in range(0, flat.size, step):
        part = converted(file, name, flat[start : start + step], dtype)
        yield part.view(np.uint8).data


def read_specs(file: Path, *, dtypes: tuple[str, ...] = DTYPES) -> dict[str, TensorSpec]:
    """Every tensor of a file, from its header alone.

    A dtype that is none of `dtypes` keeps the format's own name, in lower case.

    Raises:
        InvalidCheckpointError: the file is missing, truncated or of another format.
    """

    def specs(opened: Any) -> dict[str, TensorSpec]:
        found = {}
        for name in opened.keys():  # noqa: SIM118  # the file is no mapping
            view = opened.get_slice(name)
            code = view.get_dtype()
            dtype = NAMES.get(code)
            shown = dtype if dtype in dtypes else code.lower()
            found[name] = TensorSpec(tuple(view.get_shape()), shown)
        return found

    result: dict[str, TensorSpec] = _with_file(file, specs)
    return result


class TensorFiles:
    """The tensors of some safetensors files; a `CheckpointReader`.

    No file handle stays open between reads.

    Args:
        path: the directory, for messages.
        readable: dtypes that `read` gives; others are listed and cannot be read.
    """

    def __init__(self, path: Path, *, readable: tuple[str, ...] = DTYPES) -> None:
        self._path, self._readable = path, readable
        self._files: dict[str, Path] = {}
        self._tensors: dict[str, TensorSpec] = {}

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype."""
        return MappingProxyType(self._tensors)

    def add(self, file: Path, specs: Mapping[str, TensorSpec]) -> None:
        """List tensors of a file.

        Raises:
            InvalidCheckpointError: another file has a tensor of that name.
        """
        for name, spec in specs.items():
            if name in self._files:
                raise InvalidCheckpointError(
                    f"tensor {name} is both in {self._files[name]} and in {file}; "
                    "remove the file that is not the model's"
                )
            self._files[name], self._tensors[name] = file, spec

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it (steps of 1), in its stored dtype.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, a dtype
                that is not read, or a file that was damaged since it was listed.
        """
        if name not in self._tensors:
            raise InvalidCheckpointError(f"{self._path}: no tensor {name!r} in this checkpoint")
        spec, file = self._tensors[name], self._files[name]
        if spec.dtype not in self._readable:
            raise InvalidCheckpointError(
                f"{file}: tensor {name} is {spec.dtype}; convert it to one of "
                f"{', '.join(self._readable)}"
            )
        ranges = index_ranges(name, spec.shape, index)
        shape = tuple(stop - start for start, stop in ranges)
        if 0 in shape:
            return np.empty(shape, numpy_dtype(spec.dtype))
        slices = tuple(slice(start, stop) for start, stop in ranges)
        # safetensors finds bfloat16 by numpy's name of it, which may be MindSpore's type.
        return host_array(_with_file(file, lambda opened: opened.get_slice(name)[slices]))


def _with_file(file: Path, use: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(file, framework="numpy") as opened:
            return use(opened)
    except (SafetensorError, OSError) as exc:
        raise InvalidCheckpointError(
            f"{file} is truncated or not safetensors ({exc}); download it again"
        ) from exc
