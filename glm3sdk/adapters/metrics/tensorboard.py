"""Figures as TensorBoard reads them: an event file of scalars.

The file is a row of records (https://www.tensorflow.org/tutorials/load_data/tfrecord): length,
its checksum, an Event message of protocol buffers, its checksum. Why it is written here and
not by a library: docs/adr/0009-metrics-and-checkpoints.md.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from glm3sdk.errors import Glm3Error, ServiceClosedError, UserError

# Field numbers and wire types of tensorboard/compat/proto/event.proto and summary.proto.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SESSION_START = 1


class TensorBoardMetricSink:
    """A `MetricSink` of scalars for `tensorboard --logdir DIRECTORY`.

    Each record is in the file before `record` returns. Values are kept as float32, which is
    what the format holds.

    Args:
        directory: made where there is none; every sink writes a file of its own there.
        first_step: the step that comes first. For a run that goes on: TensorBoard forgets
            what other files of the directory have for this step and later ones.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, directory: str | os.PathLike[str], *, first_step: int = 0) -> None:
        now = time.time()
        # TensorBoard reads files in the order of their names, and only if they say tfevents.
        name = (
            f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        )
        self._path = Path(directory) / name
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        except OSError as exc:
            raise UserError(
                f"cannot write to {directory}: {exc.strerror or exc}; pass another directory"
            ) from exc
        self._write(_event(now) + _bytes(3, b"brain.Event:2"))
        if first_step > 0:
            start = _varint(1, _SESSION_START)
            self._write(_event(now, first_step) + _bytes(7, start))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of a step.

        Raises:
            Glm3Error: the disk is full.
            ServiceClosedError: the sink was closed.
        """
        if self._file.closed:
            raise ServiceClosedError(f"{self._path} was closed; open another sink")
        if values:
            summary = b"".join(_bytes(1, _scalar(name, values[name])) for name in values)
            self._write(_event(time.time(), step) + _bytes(5, summary))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        try:
            self._file.write(length + _checksum(length) + event + _checksum(event))
            self._file.flush()
        except OSError as exc:
            raise Glm3Error(
                f"cannot write {self._path}: {exc.strerror or exc}; free some space there"
            ) from exc


def _event(wall_time: float, step: int = 0) -> bytes:
    return _key(1, _FIXED64) + struct.pack("<d", wall_time) + _varint(2, step)


def _scalar(tag: str, value: float) -> bytes:
    return _bytes(1, tag.encode()) + _key(2, _FIXED32) + _float32(value)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _base128(len(data)) + data


def _varint(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _base128(value)


def _base128(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of a record."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_crc_entry, range(256)))
