"""MindSpore's `.ckpt` files, read a slice at a time and written a tensor at a time.

The format is a protocol buffer (checkpoint.proto of MindSpore), by field numbers:
Checkpoint{1: repeated Value}, Value{1: tag, 2: TensorProto, 3: MapTensorProto},
TensorProto{1: dims, 2: tensor_type, 3: tensor_content}. A tensor of more than 512 MiB is
several values in a row, each with the whole shape and a piece of the content. After it there
may be the letters crc_num and the CRC-32 of what comes before them, as 10 bytes big-endian.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import attrs
import numpy as np

from glm3sdk.adapters.storage import protobuf_wire as wire
from glm3sdk.adapters.storage.manifest import FileEntry
from glm3sdk.adapters.storage.tensor_ranges import runs
from glm3sdk.adapters.storage.write_failure import closing, writing
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.tensor_values import (
    DTYPES,
    check_specs,
    checked_values,
    converted,
    index_ranges,
)

CKPT_SUFFIX = ".ckpt"
PIECE_BYTES = 512 * 1024 * 1024
"""MindSpore's limit of one value's content; longer tensors are split."""

_CHECKPOINT_VALUE = 1
_VALUE_TAG, _VALUE_TENSOR, _VALUE_MAP = 1, 2, 3
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_CONTENT = 1, 2, 3
# MindSpore's own names: Float16, BFloat16, Int8, UInt8, Bool.
_TYPES = {dtype: dtype.title().replace("Bf", "BF").replace("Uint", "UInt") for dtype in DTYPES}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}
_TEXT, _MAP = "str", "map"

_CRC_MARK, _CRC_BYTES = b"crc_num", 17
# The first bytes of a file saved with enc_key: AES-GCM, AES-CBC, SM4-CBC.
_ENCRYPTED = tuple(bytes([first]) + b"\x5e\x3a\x7f" for first in (0xD8, 0xD9, 0xDA))
_MAX_NAME_BYTES = 4096
_MAX_TYPE_BYTES = 64
_MAX_DIMS = 32
_MAX_ELEMENTS = 1 << 48
_CHUNK_BYTES = 8 * 1024 * 1024


@attrs.define
class _Entry:
    """A tensor and where in the file its content lies, in order."""

    spec: TensorSpec
    pieces: list[tuple[int, int]]

    @property
    def length(self) -> int:
        return sum(stop - start for start, stop in self.pieces)


class MindSporeCkptFile:
    """A `.ckpt` file; a `CheckpointReader`. Opening it reads names and shapes, no content.

    Texts (`save_checkpoint(append_dict=...)` writes them), tables (MapParameter) and types that
    numpy has none for are listed, with the dtype "str", "map" or their own, and cannot be read.
    No file handle stays open between reads.

    Raises:
        InvalidCheckpointError: no such file, encrypted, truncated, or not of this format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._entries: dict[str, _Entry] = {}
        self._crc_at: int | None = None
        try:
            with self.path.open("rb", buffering=0) as file:
                self._opened = _identity(file)
                self._index(file)
        except OSError as exc:
            raise InvalidCheckpointError(
                f"{self.path} cannot be read: {exc.strerror or exc}; pass another path"
            ) from exc
        except wire.WireError as exc:
            raise self._damaged(f"is truncated or no .ckpt file ({exc})") from exc

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor's name with its shape and dtype, in the file's order."""
        return MappingProxyType({name: entry.spec for name, entry in self._entries.items()})

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read a tensor, or a slice of it (steps of 1), in its stored dtype.

        Only the slice's own bytes are read: all at once where they lie together, as the rows
        of a matrix do, else a run at a time.

        Raises:
            InvalidCheckpointError: no such tensor, an index that does not fit it, a dtype
                that is not read, or a file that changed since it was opened.
        """
        if name not in self._entries:
            raise InvalidCheckpointError(f"{self.path}: no tensor {name!r} in this checkpoint")
        entry = self._entries[name]
        if entry.spec.dtype not in DTYPES:
            raise InvalidCheckpointError(
                f"{self.path}: {name} is {entry.spec.dtype}, which is not read as a tensor; "
                "leave it out"
            )
        ranges = index_ranges(name, entry.spec.shape, index)
        values = np.empty([stop - start for start, stop in ranges], numpy_dtype(entry.spec.dtype))
        target = values.reshape(-1).view(np.uint8).data
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(file) != self._opened:
                    raise InvalidCheckpointError(
                        f"{self.path} was changed or replaced since it was opened; open it again"
                    )
                if values.size:
                    wanted = runs(entry.spec.shape, ranges, values.itemsize)
                    for number, offset in enumerate(wanted.offsets):
                        begin = number * wanted.length
                        part = target[begin : begin + wanted.length]
                        _read_into(file, part, entry.pieces, offset)
        except OSError as exc:
            raise self._damaged(f"cannot be read: {exc.strerror or exc}") from exc
        return values

    def verify(self) -> bool:
        """Read the file to its end and compare it with its CRC-32.

        Returns:
            Whether it has one: `save_checkpoint` writes it where it was asked to.

        Raises:
            InvalidCheckpointError: the file differs, or cannot be read.
        """
        if self._crc_at is None:
            return False
        try:
            with self.path.open("rb") as file:
                found, left = 0, self._crc_at
                while left and (data := file.read(min(left, _CHUNK_BYTES))):
                    found, left = zlib.crc32(data, found), left - len(data)
                trailer = file.read()
        except OSError as exc:
            raise self._damaged(f"cannot be read: {exc.strerror or exc}") from exc
        stored = int.from_bytes(trailer[len(_CRC_MARK) :], "big")
        if left or found != stored:
            raise self._damaged(f"is not what was written: its CRC-32 is {found}, not {stored}")
        return True

    def _index(self, file: BinaryIO) -> None:
        source = wire.FileSource(file)
        if source.read(0, 4) in _ENCRYPTED:
            raise InvalidCheckpointError(
                f"{self.path} is encrypted; load it in MindSpore with dec_key and save it without"
            )
        if not source.size:
            raise self._damaged("is empty")
        end = source.size - _CRC_BYTES
        if end >= 0 and source.read(end, source.size).startswith(_CRC_MARK):
            self._crc_at = end
        last = ""
        for field in wire.fields(source, 0, self._crc_at):
            if (field.number, field.type) == (_CHECKPOINT_VALUE, wire.BYTES):
                last = self._add_value(source, field, last)
        self._check_complete(last)
        if not self._entries:
            raise self._damaged("has no tensors")

    def _add_value(self, source: wire.Source, value: wire.Field, last: str) -> str:
        """Take a value in; returns its name, for the next one may go on with it."""
        name, content = None, None
        for field in wire.fields(source, value.start, value.stop):
            if field.number == _VALUE_TAG:
                name = wire.read_text(source, field, _MAX_NAME_BYTES)
            elif field.number in (_VALUE_TENSOR, _VALUE_MAP):
                if content is not None:
                    raise self._damaged(f"has a value of two tensors at byte {value.start}")
                content = field
        if name is None or content is None or content.type != wire.BYTES:
            raise self._damaged(f"has a value without a name or a tensor at byte {value.start}")
        if content.number == _VALUE_MAP:
            spec, piece = TensorSpec((), _MAP), (content.start, content.stop)
        else:
            spec, piece = self._tensor(source, content, name)
        entry = self._entries.get(name)
        if entry is not None and last == name and entry.spec == spec:
            entry.pieces.append(piece)
        elif entry is not None:
            raise self._damaged(f"has tensor {name} twice")
        else:
            self._check_complete(last)
            self._entries[name] = _Entry(spec, [piece])
        return name

    def _tensor(
        self, source: wire.Source, tensor: wire.Field, name: str
    ) -> tuple[TensorSpec, tuple[int, int]]:
        dims: list[int] = []
        kind, content = None, None
        for field in wire.fields(source, tensor.start, tensor.stop):
            if field.number == _TENSOR_DIMS:
                dims += wire.read_integers(source, field, 10 * _MAX_DIMS)
            elif field.number == _TENSOR_TYPE:
                kind = wire.read_text(source, field, _MAX_TYPE_BYTES)
            elif field.number == _TENSOR_CONTENT and field.type == wire.BYTES:
                content = (field.start, field.stop)
        if kind is None or content is None:
            raise self._damaged(f"lacks the type or the content of tensor {name}")
        elements = math.prod(size or 1 for size in dims)
        if len(dims) > _MAX_DIMS or min(dims, default=0) < 0 or elements > _MAX_ELEMENTS:
            raise self._damaged(f"gives tensor {name} the shape {dims[: _MAX_DIMS + 1]}")
        dtype = _DTYPES.get(kind, kind.lower())
        # Older versions of MindSpore wrote a scalar's shape as [0], and a text's is [0].
        if dims == [0] and content[0] < content[1]:
            dims = []
        return TensorSpec(tuple(dims), dtype), content

    def _check_complete(self, name: str) -> None:
        """Check a tensor's length, once nothing can be added to it."""
        entry = self._entries.get(name)
        if entry is None or entry.spec.dtype not in DTYPES:
            return
        expected = math.prod(entry.spec.shape) * numpy_dtype(entry.spec.dtype).itemsize
        if entry.length != expected:
            often = " (or is it there twice?)" if entry.length > expected else ""
            raise self._damaged(
                f"has {entry.length} bytes of tensor {name}, and {list(entry.spec.shape)} of "
                f"{entry.spec.dtype} are {expected}{often}"
            )

    def _damaged(self, what: str) -> InvalidCheckpointError:
        return InvalidCheckpointError(f"{self.path} {what}; use another copy or save it again")


def write_mindspore_ckpt(
    path: Path,
    specs: Mapping[str, TensorSpec],
    values: Iterable[tuple[str, HostArray]],
    *,
    piece_bytes: int = PIECE_BYTES,
) -> FileEntry:
    """Write a new file, in the order of `values`; its bytes are on the disk at the return.

    The bytes are those that MindSpore's `save_checkpoint` writes for the same tensors in the
    same order, but for tensors without elements, which it leaves out. Memory: one value and
    8 MiB.

    Args:
        path: where there is no file yet.
        specs: every tensor's shape and dtype.
        values: the tensors, each once, in any order, converted to the spec's dtype.
        piece_bytes: longest content of one value; MindSpore's own by default.

    Returns:
        The file's length and sha256.

    Raises:
        InvalidCheckpointError: values do not fit specs, or the format; no file is left.
        CheckpointWriteError: no room or no permission; no file is left.
    """
    check_specs(path.name, specs, {})
    _check_format(path.name, specs)
    digest, size = hashlib.sha256(), 0
    with writing(path):
        file = path.open("xb")
    try:
        with closing(file):
            for name, value in checked_values(path.name, specs, values):
                for chunk in _encoded(path.name, name, value, specs[name], piece_bytes):
                    with writing(path):
                        file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return FileEntry(size, digest.hexdigest())


def _check_format(file: str, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse what MindSpore would not give back as it was written."""
    if not specs:
        raise InvalidCheckpointError(f"{file}: MindSpore loads no file of no tensors; pass some")
    for name, spec in specs.items():
        if spec.shape == (0,):
            raise InvalidCheckpointError(
                f"{file}: tensor {name} has shape [0], which MindSpore takes for a scalar; "
                "leave it out"
            )
        try:
            size = len(name.encode())
        except UnicodeEncodeError as exc:
            raise InvalidCheckpointError(f"{file}: a tensor's name is not text: {exc}") from exc
        if not 0 < size <= _MAX_NAME_BYTES or len(spec.shape) > _MAX_DIMS:
            raise InvalidCheckpointError(
                f"{file}: tensor {name[:80]!r} has a name of {size} bytes and "
                f"{len(spec.shape)} dimensions; it has to be 1 to {_MAX_NAME_BYTES} bytes and "
                f"at most {_MAX_DIMS} dimensions"
            )


def _encoded(
    file: str, name: str, value: HostArray, spec: TensorSpec, piece_bytes: int
) -> Iterator[bytes | memoryview]:
    """A tensor's values (the messages), in parts of at most 8 MiB."""
    about = wire.integer_fields(_TENSOR_DIMS, spec.shape) + wire.bytes_field(
        _TENSOR_TYPE, _TYPES[spec.dtype].encode()
    )
    tag = wire.bytes_field(_VALUE_TAG, name.encode())
    flat = np.ascontiguousarray(value).reshape(-1)
    width = numpy_dtype(spec.dtype).itemsize
    step = _CHUNK_BYTES // max(flat.itemsize, width)
    for begin in range(0, max(flat.size, 1), piece_bytes // width):
        piece = flat[begin : begin + piece_bytes // width]
        tensor = about + wire.bytes_head(_TENSOR_CONTENT, piece.size * width)
        head = tag + wire.bytes_head(_VALUE_TENSOR, len(tensor) + piece.size * width) + tensor
        yield wire.bytes_head(_CHECKPOINT_VALUE, len(head) + piece.size * width) + head
        for start in range(0, piece.size, step):
            part = converted(file, name, piece[start : start + step], spec.dtype)
            yield part.view(np.uint8).data


def _read_into(
    file: BinaryIO, target: memoryview, pieces: list[tuple[int, int]], offset: int
) -> None:
    """Fill `target` with a tensor's content from `offset` on, across its pieces."""
    for start, stop in pieces:
        length = stop - start
        if offset >= length:
            offset -= length
            continue
        while target and offset < length:
            part = target[: length - offset]
            count = os.preadv(file.fileno(), [part], start + offset)
            if not count:
                raise OSError("it ends too early")
            target, offset = target[count:], offset + count
        if not target:
            return
        offset = 0


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
