"""Scalars of event files, read with tensorboardX's messages and checksum, not with ours."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog


def read_events(file: Path) -> Iterator[Any]:
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert _masked(data[:8]) == data[8:12]
        event = data[12 : 12 + length]
        assert len(event) == length
        assert _masked(event) == data[12 + length : 16 + length]
        yield Event.FromString(event)
        data = data[16 + length :]


def read_scalars(directory: Path) -> dict[int, dict[str, float]]:
    """Figures by step, by name, as TensorBoard shows them: a session start drops later steps."""
    scalars: dict[int, dict[str, float]] = {}
    for file in sorted(directory.iterdir()):
        events = list(read_events(file))
        assert events[0].file_version == "brain.Event:2"
        for event in events[1:]:
            if event.session_log.status == SessionLog.START:
                scalars = {step: row for step, row in scalars.items() if step < event.step}
            for value in event.summary.value:
                scalars.setdefault(event.step, {})[value.tag] = value.simple_value
    return scalars


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
